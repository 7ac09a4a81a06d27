"""Word search over tantivy: stems of words and their exact forms, filters and counts, sorting, snippets."""

import contextlib
import copy
import datetime
import functools
import itertools
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tantivy
from tantivy import Occur, Order, Query

from marketplace.cleaning.listings import CATEGORY_SEPARATOR, category_levels
from marketplace.cleaning.redaction import MARK
from marketplace.files import generations
from marketplace.files.stages import StageError
from marketplace.retrieval import filters as names
from marketplace.retrieval.analysis import ANALYZERS, aligned, clean, fold, split, stem
from marketplace.retrieval.filters import MAX_NAME, Filters
from marketplace.retrieval.forward import MAX_WORDS

FOLDER = "words"  # in a generation
WEIGHTS = {"name": 5.0, "description": 1.0, "category": 2.0}  # in BM25: a title says what a thing is
HEAP_BYTES = 256_000_000  # that writing may fill before a segment goes to disk: 100,000 listings are one segment
PRICE_STEPS = (10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)  # where the price ranges that are counted begin, by default
MAX_NAMES = 10_000  # of categories or places that are counted
KEYS_AT_ONCE = 200  # asked for in one query: the time of a union of more terms grows faster than their number
SNIPPET_CHARACTERS = 160

Sort = Literal["price_up", "price_down", "newest"]
_ORDERS = {"price_up": ("cheapest", Order.Asc), "price_down": ("dearest", Order.Desc), "newest": ("newest", Order.Desc)}


@dataclass(frozen=True)
class Alternative:
    """Stems that together stand for a typed word, what they count against it, and how they come: "" (its own), "synonym",
    "corrected", "begun", "joined" or "split"; text: as a person would read it."""

    stems: tuple[str, ...]
    credit: float
    how: str
    text: str


@dataclass(frozen=True)
class Wanted:
    """The listings that hold every one of some words, each by any of its alternatives; and those of `others`, (n,) int64 keys."""

    words: tuple[tuple[Alternative, ...], ...]
    others: np.ndarray


# Writing.


def write(folder: Path, listings: Iterable[pd.DataFrame], keys: Iterable[np.ndarray]) -> None:
    """Write the word index of a generation.

    listings: name, description, category, price (or NaN), town, county, posted_on (ISO date or ""), some at a time;
    keys: (N,) int64 of each of these blocks, positive, all different.
    """
    (folder / FOLDER).mkdir()
    index = _registered(tantivy.Index(_schema(), path=str(folder / FOLDER)))
    expected = _commit(index, [], listings, keys)
    _tidy(folder / FOLDER)
    if (held := index.searcher().num_docs) != expected:
        raise StageError(f"{folder / FOLDER} holds {held} of {expected} listings: run python build_index.py again")


def update(published: Path, folder: Path, gone: np.ndarray, listings: Iterable[pd.DataFrame], keys: Iterable[np.ndarray]) -> None:
    """Write the word index of a generation that follows a published one, which stays as it is.

    gone: (N,) int64 keys of listings that are no more or have changed; listings, keys: those that are new or have changed, as in
    write(). The words of listings that are gone stay in the linked files, unseen, until write() makes all anew.
    Raises StageError when the published index does not hold what is gone, or holds what is new.
    """
    _link(published / FOLDER, folder / FOLDER)
    index = _open(folder / FOLDER, published / FOLDER)
    before = index.searcher().num_docs
    expected = before - len(gone) + _commit(index, gone.tolist(), listings, keys)
    _tidy(folder / FOLDER)
    if (held := index.searcher().num_docs) != expected:
        raise StageError(
            f"{published / FOLDER} does not hold the listings of its generation ({held} after the update, not {expected}):"
            " run python build_index.py --full"
        )


def _link(published: Path, folder: Path) -> None:
    folder.mkdir()
    for path in published.glob("*"):
        if path.suffix == ".json":  # replaced when the update is committed
            shutil.copy2(path, folder / path.name)
        elif path.suffix != ".lock":
            generations.link(path, folder / path.name)


def _commit(index: tantivy.Index, gone: list[int], listings: Iterable[pd.DataFrame], keys: Iterable[np.ndarray]) -> int:
    """Delete and add listings; returns how many were added. One thread: the order of rows is that of documents."""
    added = 0
    writer = index.writer(HEAP_BYTES, num_threads=1)
    for start in range(0, len(gone), KEYS_AT_ONCE):
        # By query: delete_documents_by_term finds no unsigned number, and says nothing.
        writer.delete_documents_by_query(_holding_keys(index.schema, gone[start : start + KEYS_AT_ONCE]))
    for block, block_keys in zip(listings, keys, strict=True):
        for key, listing in zip(block_keys.tolist(), _records(block), strict=True):
            writer.add_document(_document(key, *listing))
        added += len(block)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return added


def _tidy(folder: Path) -> None:
    """Remove tantivy's locks, and let whoever may read the folder read its JSON: tantivy makes that for the builder alone."""
    for path in folder.glob("*.lock"):
        path.unlink()
    for path in folder.glob("*.json"):  # hidden ones too
        path.chmod(folder.stat().st_mode & 0o666)


def _records(listings: pd.DataFrame) -> Iterator[tuple]:
    columns = ("name", "description", "category", "price", "town", "county", "posted_on")
    return zip(*(listings[column].tolist() for column in columns), strict=True)


def _document(
    key: int, name: str, description: str, category: str, price: float, town: str, county: str, posted_on: str
) -> tantivy.Document:
    document = tantivy.Document()  # field by field: given by keyword, fields have ended the writer
    document.add_unsigned("key", key)
    for field, text in (("name", name), ("description", description), ("category", names.said_by_category(category))):
        folded = _cut(fold(text))
        document.add_text(field, folded)
        document.add_text(f"{field}_exact", folded)
    for field, values in (("categories", names.category_names(category)), ("places", names.place_names(town, county))):
        for value in sorted(values):
            document.add_text(field, value)
    path = CATEGORY_SEPARATOR.join(category_levels(category))
    for field, value in (("category_path", path), ("town", town), ("county", county)):
        if value:
            document.add_text(field, value[:MAX_NAME])
    priced, day = price == price, datetime.date.fromisoformat(posted_on[:10]).toordinal() if posted_on else 0
    amount = names.comparable_price(price) if priced else math.inf
    bits = int(np.float32(amount).view(np.uint32))  # 31 of them, which sort as prices do
    if priced:
        document.add_float("price", amount)
    for field, value in (("cheapest", bits), ("dearest", bits if priced else -1), ("newest", day)):
        # Listings of one price or day have an order of their own, the same in every generation.
        document.add_integer(field, value << 31 | key >> 32)
    return document


def _cut(folded: str) -> str:
    """A folded text without the words that ranking does not see: a total counts no listing for these."""
    if len(folded) < 2 * MAX_WORDS:  # a word and a blank are two characters
        return folded
    return " ".join(ANALYZERS["exact"].analyze(folded)[:MAX_WORDS])


@functools.cache
def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for field in WEIGHTS:
        builder.add_text_field(field, tokenizer_name="stem", index_option="freq")
        builder.add_text_field(f"{field}_exact", tokenizer_name="exact", index_option="freq")
    for field in ("categories", "places"):  # what filters may name
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for field in ("category_path", "town", "county"):  # what is counted
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic", fast=True)
    builder.add_unsigned_field("key", indexed=True, fast=True)
    builder.add_float_field("price", fast=True)
    for field, _ in _ORDERS.values():
        builder.add_integer_field(field, fast=True)
    return builder.build()


def _registered(index: tantivy.Index) -> tantivy.Index:
    for name, analyzer in ANALYZERS.items():
        index.register_tokenizer(name, analyzer)
    index.config_reader("manual")
    return index


def _open(folder: Path, published: Path) -> tantivy.Index:
    """An index, by the files or links in a folder; StageError when that of the published one is missing or damaged."""
    try:
        return _registered(tantivy.Index.open(str(folder)))
    except (ValueError, OSError) as error:
        raise StageError(f"{published} is missing or damaged ({error}): run python build_index.py --full") from None


@contextlib.contextmanager
def _view(folder: Path) -> Iterator[Path]:
    """A folder of links to open an index by; once open, its files stay mapped when these are gone.

    tantivy puts lock files into the folder that it opens, and a generation may be on a disk that is only read.
    """
    view = Path(tempfile.mkdtemp())
    try:
        for path in folder.glob("*"):
            (view / path.name).symlink_to(path.absolute())
        yield view
    finally:
        while view.exists():  # a thread of tantivy's may just have put another lock there
            shutil.rmtree(view, ignore_errors=True)


def _holding_keys(schema: tantivy.Schema, keys: Iterable[int]) -> Query:
    # Not term_set_query, which walks through the dictionary of all keys.
    return Query.boolean_query([(Occur.Should, Query.term_query(schema, "key", key, index_option="basic")) for key in keys])


# Reading.


@dataclass(frozen=True)
class Counts:
    """How many listings of a result each filter would leave: by category path, at every level; by town and county; and by price
    range, both ends included, None for no upper end."""

    categories: dict[str, int]
    towns: dict[str, int]
    counties: dict[str, int]
    prices: dict[tuple[float, float | None], int]


@dataclass(frozen=True)
class Snippet:
    """A part of a text, and which characters of it are words that were looked for: (start, end) each, ascending."""

    text: str
    marks: list[tuple[int, int]]


class WordIndex:
    """The words of one generation's listings; safe to read from many threads."""

    def __init__(self, folder: Path):
        """Raises StageError when the index is missing or damaged."""
        with _view(folder / FOLDER) as view:
            index = _open(view, folder / FOLDER)
            segments = json.loads((view / "meta.json").read_bytes())["segments"]
        self._searcher = index.searcher()
        self._schema = index.schema
        self._deleted = sum(segment["deletes"]["num_deleted_docs"] for segment in segments if segment["deletes"])
        self._hidden, self._hidden_names = np.empty(0, np.int64), list

    def __len__(self) -> int:
        return self._searcher.num_docs - len(self._hidden)

    def hiding(self, keys: np.ndarray, names: Callable[[], list[str]]) -> "WordIndex":
        """The same index, whose totals, counts, pages and frequencies are those without the listings of some keys (n,), which are
        all in it; candidates() finds them still. names: gives the names of these listings, in any order."""
        view = copy.copy(self)
        view._hidden, view._hidden_names = keys, names
        return view

    def search(
        self,
        wanted: Wanted | None,
        filters: Filters | None = None,
        sort: Sort = "newest",
        k: int = 10,
        offset: int = 0,
    ) -> tuple[np.ndarray, int]:
        """Keys (n,) int64 of the listings that pass the filters and are wanted, k of them from place `offset` on, and the number
        of all; those without a price or date come last where that is sorted by. wanted: None for all."""
        field, order = _ORDERS[sort]
        found = self._searcher.search(self._asked(wanted, filters), k, offset=offset, order_by_field=field, order=order)
        return self._keys(found.hits), found.count

    def count(self, wanted: Wanted, filters: Filters | None = None) -> int:
        """How many listings search() finds."""
        return self._searcher.search(self._asked(wanted, filters), 1).count

    def counts(self, wanted: Wanted | None, filters: Filters | None = None, price_steps: Sequence[float] = PRICE_STEPS) -> Counts:
        """Of all listings that search() finds. price_steps: where the price ranges begin, ascending."""
        asked = {field: {"terms": {"field": field, "size": MAX_NAMES}} for field in ("category_path", "town", "county")}
        ranges = _price_ranges(price_steps)
        asked["price"] = {"range": {"field": "price", "ranges": list(ranges.values())}}
        found = self._searcher.aggregate(self._asked(wanted, filters), asked)
        towns, counties, paths = (_counted(found, field) for field in ("town", "county", "category_path"))
        categories = Counter()
        for path, count in paths.items():
            levels = category_levels(path)
            for depth in range(len(levels)):
                categories[CATEGORY_SEPARATOR.join(levels[: depth + 1])] += count
        in_ranges = [bucket["doc_count"] for bucket in found["price"]["buckets"]] or [0] * len(ranges)  # none without listings
        return Counts(dict(categories), towns, counties, dict(zip(ranges, in_ranges, strict=True)))

    def highlighter(self, meant: Sequence[Sequence[Alternative]]) -> "Highlighter":
        """Marks words, by any of their alternatives, in listings."""
        words = [[self._meaning(one) for one in alternatives] for alternatives in meant]
        return Highlighter(self._searcher, self._schema, _any_of(words))

    def _keys(self, hits: Sequence[tuple]) -> np.ndarray:
        return np.array(self._searcher.fast_field_values("key", [address for _, address in hits]), np.int64)

    def _all_first(self, wanted: list[list[Query]], conditions: list[Query], limit: int) -> list[tuple]:
        """Scores and addresses of listings with all the words, then of those with some, each kind by score."""
        hits = self._with_all(wanted, conditions, limit)
        if len(hits) < limit and len(wanted) > 1:
            with_all = {(address.segment_ord, address.doc) for _, address in hits}
            with_any = self._searcher.search(_every(_any_of(wanted), *conditions), limit, count=False).hits
            hits = [*hits, *(hit for hit in with_any if (hit[1].segment_ord, hit[1].doc) not in with_all)][:limit]
        return hits

    def _with_all(self, wanted: list[list[Query]], conditions: list[Query], limit: int) -> list[tuple]:
        return self._searcher.search(_every(*(_any_of([word]) for word in wanted), *conditions), limit, count=False).hits

    # What a typed query is read by, and what it finds.

    def frequency(self, word: str) -> int:
        """In how many listings a word is, in its exact form: those whose name has it or, where more, those whose description."""
        return self._frequency(("name_exact", "description_exact"), word)

    def stem_frequency(self, stem: str) -> int:
        """Likewise in any form, in names, descriptions or categories."""
        return self._frequency(tuple(WEIGHTS), stem)

    def holds(self, stems: Sequence[str]) -> bool:
        return all(map(self.stem_frequency, stems))

    def names_with(self, stems: Sequence[str]) -> int:
        """How many names hold all of some stems."""
        if not all(self._searcher.doc_freq("name", stem) for stem in stems):
            return 0
        return self._searcher.search(self._shown(_every(*(self._term("name", stem) for stem in stems))), 1).count

    def name_words(self) -> list[tuple[str, int]]:
        """Every word of a name, in its exact form, and how many names hold it, those of deleted listings among them."""
        hidden = Counter(word for name in self._hidden_names() for word in set(split(name)[:MAX_WORDS]))
        counts = self._searcher.terms_with_prefix("name_exact", "")
        return [(word, count - hidden[word]) for word, count in counts if count > hidden[word]] if hidden else counts

    def words_beginning(self, beginning: str, most: int) -> tuple[str, ...]:
        """Stems of the commonest words that begin so."""
        begun = Counter()
        for field in WEIGHTS:
            begun.update(dict(self._searcher.terms_with_prefix(f"{field}_exact", beginning)))
        return self._commonest(begun, most)

    def candidates(
        self, typed: Sequence[str], meant: Sequence[Sequence[Alternative]], k: int, filters: Filters | None = None
    ) -> np.ndarray:
        """Keys, ascending, of the k listings that match words best as they were typed, and of the k that match best what they may
        mean; each time those with all the words first.

        typed: words in their exact form; meant: of each word, what may stand for it.
        """
        conditions = self._conditions(filters)
        exactly = [self._exactly(word) for word in typed if self.frequency(word)]
        held = [[one for one in alternatives if self.holds(one.stems)] for alternatives in meant]
        freely = [[self._meaning(one) for one in alternatives] for alternatives in held if alternatives]
        hits = self._all_first(exactly, conditions, k) if exactly else []
        if freely:
            # Other forms of some of the words, of a query without synonyms, add little to as many listings with the very words.
            some_too = len(hits) < k or any(len(alternatives) > 1 for alternatives in held)
            hits = hits + (self._all_first(freely, conditions, k) if some_too else self._with_all(freely, conditions, k))
        return np.unique(self._keys(hits))

    def _exactly(self, word: str) -> list[Query]:
        return [self._term(f"{field}_exact", word, weight) for field, weight in WEIGHTS.items()]

    def _meaning(self, alternative: Alternative) -> Query:
        """All its stems, wherever they are."""
        stems = alternative.stems
        each = [
            _any_of([[self._term(field, stem, alternative.credit * weight) for field, weight in WEIGHTS.items()]])
            for stem in stems
        ]
        return _every(*each)

    def _term(self, field: str, word: str, boost: float | None = None) -> Query:
        query = Query.term_query(self._schema, field, word, index_option="basic" if boost is None else "freq")
        return query if boost is None else Query.boost_query(query, boost)

    def _frequency(self, fields: tuple[str, ...], word: str) -> int:
        counts = [self._searcher.doc_freq(field, word) for field in fields]
        if 0 < max(counts) <= self._deleted + len(self._hidden):  # maybe only listings that are gone or hidden hold it
            return max(self._held(field, word, count) for field, count in zip(fields, counts, strict=True))
        return min(max(counts), len(self))  # counts are of deleted listings too

    def _held(self, field: str, word: str, most: int) -> int:
        """In how many listings' field a word is. most: those that are gone or hidden among them."""
        found = self._searcher.search(self._term(field, word), max(most, 1))
        return found.count - int(np.isin(self._keys(found.hits), self._hidden).sum()) if len(self._hidden) else found.count

    def _asked(self, wanted: Wanted | None, filters: Filters | None) -> Query:
        """The listings that pass the filters, are wanted, and are not hidden."""
        return self._shown(self._passing(wanted, filters))

    def _shown(self, asked: Query) -> Query:
        """What a query finds and is not hidden."""
        if not len(self._hidden):
            return asked
        hidden = self._hidden.tolist()
        if len(hidden) <= KEYS_AT_ONCE:
            left_out = _holding_keys(self._schema, hidden)
        else:  # its walk through the dictionary of all keys takes less time than a union of so many
            left_out = Query.term_set_query(self._schema, "key", hidden)
        return Query.boolean_query([(Occur.Must, asked), (Occur.MustNot, left_out)])

    def _passing(self, wanted: Wanted | None, filters: Filters | None) -> Query:
        conditions = self._conditions(filters)
        if wanted is None:
            return _every(*conditions)
        words = [_any_of([[self._meaning(one) for one in alternatives]]) for alternatives in wanted.words]
        holding = _every(*words) if words else Query.empty_query()
        if len(wanted.others):
            holding = _any_of([[holding, _holding_keys(self._schema, wanted.others.tolist())]])
        return _every(holding, *conditions)

    def _commonest(self, words: dict[str, int], most: int) -> tuple[str, ...]:
        """The stems of some words, given with the number of fields that each is in: the commonest first."""
        counts = Counter()
        for word, count in words.items():
            counts[stem(word)] += count
        ordered = sorted(counts, key=lambda stem: (-counts[stem], stem))
        return tuple(itertools.islice(filter(self.stem_frequency, ordered), most))

    # What must be.

    def _conditions(self, filters: Filters | None) -> list[Query]:
        """Queries that add nothing to a score."""
        filters, found = filters or Filters(), []
        if filters.category is not None:
            found.append(self._named("categories", names.category_path(filters.category)))
        low, high = (None if bound is None else names.comparable_price(bound) for bound in (filters.min_price, filters.max_price))
        if (low, high) != (None, None):
            found.append(Query.range_query(self._schema, "price", tantivy.FieldType.Float, low, high))
        if filters.location is not None:
            found.append(self._in_place(names.place_name(filters.location)))
        return [Query.const_score_query(query, 0.0) for query in found]

    def _named(self, field: str, name: str) -> Query:
        return Query.term_query(self._schema, field, name, index_option="basic") if name else Query.empty_query()

    def _in_place(self, name: str) -> Query:
        """The places that are called so; where none is, those that begin so."""
        exactly = self._named("places", name)
        if not name or self._searcher.search(self._shown(exactly), 1).count:
            return exactly
        # Not phrase_prefix_query, which finds the first 50 names only.
        return Query.fuzzy_term_query(self._schema, "places", name, distance=0, prefix=True)


class Highlighter:
    """Marks words in the fields of listings; for one thread."""

    def __init__(self, searcher: tantivy.Searcher, schema: tantivy.Schema, words: Query):
        self._generators = {
            field: tantivy.SnippetGenerator.create(searcher, words, schema, field) for field in ("name", "description")
        }

    def snippet(self, description: str, max_characters: int = SNIPPET_CHARACTERS) -> Snippet:
        """The part of a description, clean, that holds most of the words; its beginning where it holds none."""
        description = clean(description)
        return self._marked("description", description, max_characters) or Snippet(description[:max_characters], [])

    def marks(self, name: str) -> list[tuple[int, int]]:
        """Which characters of a name are the words: (start, end) each, ascending."""
        cleaned, starts = aligned(name)
        found = self._marked("name", cleaned, len(cleaned.encode()))
        return [(starts[start], starts[end]) for start, end in found.marks] if found else []

    def _marked(self, field: str, text: str, max_bytes: int) -> Snippet | None:
        """None where no word is in the text."""
        generator, document = self._generators[field], tantivy.Document()
        generator.set_max_num_chars(max_bytes)  # as tantivy calls bytes of UTF-8
        document.add_text(field, text)
        found = generator.snippet_from_doc(document)
        if not found.fragment():
            return None
        raw = found.fragment().encode()
        marks = [(len(raw[: mark.start].decode()), len(raw[: mark.end].decode())) for mark in found.highlighted()]
        at = text.find(found.fragment())  # which may end inside a mark of redaction
        redacted = {place - at for match in MARK.finditer(text) for place in range(*match.span())}
        return Snippet(found.fragment(), [(start, end) for start, end in marks if start not in redacted])


def _price_ranges(steps: Sequence[float]) -> dict[tuple[float, float | None], dict[str, float]]:
    """The lowest and the highest price of each range, and the range as tantivy takes it: without its upper end, which is the next
    float32 above the highest price."""
    below = np.nextafter(np.array(steps, np.float32), np.float32(0)).tolist()  # of amounts beyond millions a hundredth is nothing
    highest = [round(min(step - 0.01, lower), 2) for step, lower in zip(steps, below, strict=True)]
    ends = [float(np.nextafter(np.float32(price), np.float32(np.inf))) for price in highest]
    lowest = (0.0, *steps)
    first, last = {"to": ends[0]}, {"from": ends[-1]}
    between = ({"from": start, "to": end} for start, end in itertools.pairwise(ends))
    return dict(zip(zip(lowest, (*highest, None), strict=True), (first, *between, last), strict=True))


def _counted(found: dict, field: str) -> dict[str, int]:
    return {bucket["key"]: bucket["doc_count"] for bucket in found[field]["buckets"]}


def _any_of(words: list[list[Query]]) -> Query:
    """Flat: a union of terms is faster than one of unions."""
    return Query.boolean_query([(Occur.Should, query) for queries in words for query in queries])


def _every(*queries: Query) -> Query:
    if len(queries) == 1:
        return queries[0]
    return Query.boolean_query([(Occur.Must, query) for query in queries]) if queries else Query.all_query()
