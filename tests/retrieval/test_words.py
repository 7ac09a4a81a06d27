import datetime
import functools
import itertools
import math
import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.retrieval import analysis, catalogue, forward, words
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.typed import Reader, Synonyms
from marketplace.retrieval.words import Alternative, Wanted

NAMES = [
    "Acoustic guitar", "Pine double bed", "Brass lamp", "Racing bicycle", "Guitar stand", "Lamps, a pair", "Café chairs",
    "Washing machine", "Camp bed", "Bed", "", "Bicycle pump and bicycle lock", "Guide to camping", "iPhone 6s 64GB", "iPhone 7",
]  # fmt: skip
CATEGORIES = ["Music", "Home / Beds", "Home / Lighting", "Sports", "Music / Home"] * 3
PLACES = [("London", "Greater London"), ("Hanley, Stoke-on-Trent", "Staffordshire"), ("Londonderry", ""), ("Stafford", "Kent")]
PRICES = [0.0, 9.99, 10.0, 24.99, 25.0, np.nan, 1234.56, 12.34]
DAYS = ["2020-01-31", "", "2021-03-01", "2019-12-24", "2021-03-02"]


def listing(row: int, name: str, description: str | None = None) -> dict:
    return {
        "name": name,
        "description": f"A lovely {name.split(' ')[-1]} number {row}, good condition" if description is None else description,
        "category": CATEGORIES[row % 15],
        "price": PRICES[row % 8],
        "price_plausible": True,
        "town": PLACES[row % 4][0],
        "county": PLACES[row % 4][1],
        "posted_on": DAYS[row % 5],
    }


TABLE = pd.DataFrame([listing(row, name) for row, name in enumerate(NAMES)])
KEYS = np.random.default_rng(0).integers(1, 2**63 - 1, len(NAMES))
ROW = {int(key): row for row, key in enumerate(KEYS)}


def rows_of(keys: np.ndarray) -> list[int]:
    return [ROW[key] for key in keys.tolist()]


def folder_of(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name


def written(folder: Path, table: pd.DataFrame, keys: np.ndarray = KEYS) -> words.WordIndex:
    folder.mkdir(parents=True, exist_ok=True)
    words.write(folder, [table], [keys[: len(table)]])
    return words.WordIndex(folder)


def named(*listing_names: str) -> pd.DataFrame:
    return pd.DataFrame([listing(row, name, "") for row, name in enumerate(listing_names)])


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> words.WordIndex:
    return written(tmp_path_factory.mktemp("words"), TABLE)


def meant(text: str) -> list[tuple[Alternative, ...]]:
    """Every word of a text by nothing but its stem."""
    return [(Alternative((analysis.stem(word),), 1.0, "", word),) for word in dict.fromkeys(analysis.split(text))]


def with_all(text: str) -> Wanted:
    return Wanted(tuple(meant(text)), np.empty(0, np.int64))


def found(index: words.WordIndex, text: str, k: int = 20, filters: Filters | None = None) -> list[int]:
    """Rows of the candidates for a text's words, ascending."""
    return sorted(rows_of(index.candidates(list(dict.fromkeys(analysis.split(text))), meant(text), k, filters)))


def searchable(field: str) -> list[str]:
    """A field's texts as they are searched: the main category is of too many kinds of things."""
    if field != "category":
        return TABLE[field].tolist()
    return [path.split(" / ", 1)[-1] for path in TABLE["category"]]


@functools.cache
def bm25(word: str, form: Callable[[str], str]) -> np.ndarray:
    """(listings,) Okapi BM25 of a word in some form, fields weighted.

    Source: Robertson and Zaragoza 2009, with Lucene's idf above 0.
    """
    total = np.zeros(len(TABLE))
    for field, weight in words.WEIGHTS.items():
        tokens = [[form(one) for one in analysis.split(text)] for text in searchable(field)]
        lengths = np.array([len(one) for one in tokens])
        counts = np.array([one.count(word) for one in tokens])
        holding = int((counts > 0).sum())
        idf = math.log(1 + (len(TABLE) - holding + 0.5) / (holding + 0.5))
        with np.errstate(invalid="ignore"):
            total += weight * idf * counts * 2.2 / (counts + 1.2 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-9)))
    return total


def bm25_meant(alternatives: Sequence[Alternative]) -> np.ndarray:
    """(listings,) what each scores for a word: for every alternative whose stems it holds all, that one's credit of theirs."""
    total = np.zeros(len(TABLE))
    for one in alternatives:
        scores = np.array([bm25(stem, analysis.stem) for stem in one.stems])
        total += one.credit * scores.sum(axis=0) * (scores > 0).all(axis=0)
    return total


def is_held_or_unknown(word: list[Alternative]) -> bool:
    """Not for one whose stems are all held, but by no listing together: that is looked for, and found nowhere."""
    held_apart = any(all(bm25(stem, analysis.stem).any() for stem in one.stems) for one in word)
    return bool(bm25_meant(word).any()) or not held_apart


def assert_best(rows: list[int], per_word: list[np.ndarray], k: int) -> set[int]:
    """The rows are the k best by the words' scores, those with all the words first; returns those with all."""
    scores = np.array([one for one in per_word if one.any()] or [np.zeros(len(TABLE))])
    total, every = scores.sum(axis=0), (scores > 0).all(axis=0)
    assert len(rows) == len(set(rows)) == min(k, (total > 0).sum())
    assert every[rows].sum() == min(k, every.sum())
    for tier in (every, ~every & (total > 0)):
        kept = [row for row in rows if tier[row]]
        left = [row for row in np.flatnonzero(tier) if row not in rows]
        if kept and left:
            assert total[kept].min() >= total[left].max() - 1e-4
    return {row for row in rows if every[row]}


VOCABULARY = sorted({word for field in words.WEIGHTS for text in searchable(field) for word in analysis.split(text)})
STEMS = sorted(set(map(analysis.stem, VOCABULARY))) + ["zeppelin"]
ALTERNATIVES = st.lists(
    st.builds(
        Alternative,
        st.lists(st.sampled_from(STEMS), min_size=1, max_size=2, unique=True).map(tuple),
        st.sampled_from([1.0, 0.8, 0.5]),
        st.just("synonym"),
        st.just(""),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda one: one.stems,
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([*VOCABULARY, "zeppelin"]), min_size=1, max_size=4, unique=True), st.integers(1, 16))
def test_candidates_as_typed_are_the_best_by_bm25_of_the_exact_words(index, typed, k):
    # A word that only categories hold is no exact word: a listing of the category is found by what it means.
    texts = [analysis.split(f"{name} {text}") for name, text in zip(TABLE["name"], TABLE["description"], strict=True)]
    told = [word for word in typed if any(word in text for text in texts)]
    assert_best(rows_of(index.candidates(typed, [], k)), [bm25(word, str) for word in told], k)


@settings(deadline=None, max_examples=100)
@given(st.lists(ALTERNATIVES, min_size=1, max_size=3), st.integers(1, 16))
def test_candidates_by_meaning_are_the_best_by_bm25_of_all_alternatives(index, alternatives, k):
    assume(all(map(is_held_or_unknown, alternatives)))
    assert_best(rows_of(index.candidates([], alternatives, k)), [bm25_meant(one) for one in alternatives], k)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4, unique=True),
    st.none() | st.lists(ALTERNATIVES, min_size=1, max_size=3),
    st.integers(1, 16),
)
def test_candidates_are_the_best_as_typed_and_the_best_by_meaning(index, typed, alternatives, k):
    asked = alternatives or meant(" ".join(typed))
    assume(all(map(is_held_or_unknown, asked)))
    exactly, freely = set(index.candidates(typed, [], k).tolist()), set(index.candidates([], asked, k).tolist())
    keys = index.candidates(typed, asked, k).tolist()
    assert keys == sorted(set(keys)) and exactly <= set(keys) <= exactly | freely
    every = assert_best([ROW[key] for key in freely], [bm25_meant(one) for one in asked], k)
    assert every <= set(rows_of(np.array(keys)))
    if len(exactly) < k:
        assert set(keys) == exactly | freely


def test_the_best_k_are_among_the_best_of_more(index):
    for typed, asked in ((["guitar", "bed", "good", "lamp"], []), ([], meant("guitar bed good lamp"))):
        best = [set(index.candidates(typed, asked, k).tolist()) for k in range(1, len(NAMES))]
        assert [len(keys) for keys in best] == [*range(1, len(NAMES))]
        assert all(fewer < more for fewer, more in itertools.pairwise(best))


def test_keys_of_nobody_are_found_by_no_word(index):
    wanted = Wanted(tuple(meant("guitar")), np.array([5, 7]))
    assert index.count(wanted) == index.count(with_all("guitar")) == 2


def test_listings_are_wanted_by_all_of_their_words_or_by_their_keys(index):
    either = (Alternative(("bed",), 1.0, "", "bed"), Alternative(("wash", "machin"), 0.8, "synonym", "washing machine"))
    wanted = Wanted((either, *meant("lovely")), KEYS[[2]])
    keys, total = index.search(wanted, k=50)
    assert sorted(rows_of(keys)) == [1, 2, 6, 7, 8, 9, 11] and total == index.count(wanted) == 7
    assert sorted(rows_of(index.search(wanted, Filters(max_price=9.99), k=50)[0])) == [1, 8, 9]
    assert index.search(Wanted((), np.empty(0, np.int64)))[1] == 0  # no word at all
    assert rows_of(index.search(Wanted((), KEYS[[3]]))[0]) == [3]


def test_words_are_counted_in_names_descriptions_and_categories(index):
    assert index.frequency("guitar") == 2 and index.frequency("guitars") == 0 and index.frequency("lamps") == 1
    assert index.frequency("lovely") == len(NAMES) and index.frequency("lighting") == 0  # that only categories hold
    assert index.stem_frequency("lamp") == 2 and index.stem_frequency("light") == 3
    assert index.holds(("lamp", "light")) and not index.holds(("lamp", "zeppelin"))
    assert index.names_with(("guitar",)) == 2 and index.names_with(("camp", "bed")) == 1
    assert index.names_with(("guitar", "bed")) == index.names_with(("love",)) == index.names_with(("zeppelin",)) == 0
    counted = Counter(word for name in NAMES for word in set(analysis.split(name)))
    assert dict(index.name_words()) == counted


def test_the_commonest_words_that_begin_so_come_first(index):
    assert index.words_beginning("gui", 8) == ("guitar", "guid") and index.words_beginning("gui", 1) == ("guitar",)
    assert index.words_beginning("xyz", 8) == ()


def test_case_accents_and_endings_do_not_matter(index):
    for typed in ("CAFE", "cafés", "ｃａｆé", "cafe\u0301", "Chair"):
        assert found(index, typed) == [6], typed


@pytest.mark.parametrize(
    ("typed", "sold"),
    [
        ("wardrobe", "ward\u00adrobe"), ("wardrobe", "ward\u200brobe"), ("wardrobe", "ward&shy;robe"), ("pram", "PR&#8203;AM"),
        ("cafe", "caf&eacute;"), ("cafe", "cafe\u0301"), ("pram", "\ufeffpram"), ("orsted", "Ørsted"), ("strasse", "Straße"),
        ("istanbul", "İstanbul"), ("σοφος", "ΣΟΦΌΣ"), ("dogs", "cats&amp;dogs"), ("fine", "ﬁne"),
    ],
)  # fmt: skip
def test_what_nobody_sees_or_types_does_not_split_a_word(tmp_path, typed, sold):
    index = written(tmp_path, named(f"one {sold} two", "other"))
    for query in (typed, sold):
        assert found(index, query) == [0]


def test_an_ampersand_without_a_semicolon_is_no_entity(tmp_path):
    assert found(written(tmp_path, named("black &notebook")), "notebook") == [0]


ODD = [
    "\0", "bed\0lamp", "\ud800 bed", "\U0001f600", "x" * 70_000, "y" * 70_000 + " bed", "bed " * 25_000, "+bed -lamp",
    '"bed lamp', "(bed", "bed)^5", "bed~2", "name:bed", "*", "be*", "[a TO z]", "bed AND", "OR", "NOT bed", "\\", "/bed/",
    "&#xD800; &#0; &#99999999;", "\u200b", " / ", ",", "é" * 40_000,
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_characters_are_plain_text_in_listings_and_queries(tmp_path, odd):
    text = odd.encode("utf-8", "ignore").decode()  # as a file holds it
    row = listing(0, odd, odd) | {"category": text, "town": text, "county": text}
    index = written(tmp_path, pd.DataFrame([row, listing(1, "Pine bed")]))
    for wanted, filters in ((with_all(odd), None), (None, Filters(odd, None, None, odd)), (with_all("bed"), None)):
        keys, total = index.search(wanted, filters)
        assert total == len(keys)
    assert max(index.counts(with_all(odd)).towns.values(), default=0) <= 2
    highlighter = index.highlighter(meant(odd))
    assert found(index, "pine") == [1] and len(highlighter.snippet(odd).text) <= 200
    assert all(0 <= start < end <= len(odd) for start, end in highlighter.marks(odd))
    if "bed" in odd and analysis.split(odd)[:1] != ["x"]:
        assert 1 in found(index, odd)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=80), st.integers(1, 20))
def test_any_text_is_words(index, text, k):
    typed = analysis.split(text)
    keys = index.candidates(typed, meant(text), k)
    assert len(set(keys.tolist())) == len(keys) <= 2 * k and index.count(with_all(text)) <= len(TABLE)
    sold = f"A {text} guitar"
    snippet, marks = index.highlighter(meant(text)).snippet(sold), index.highlighter(meant(text)).marks(sold)
    for shown, marked in ((snippet.text, snippet.marks), (sold, marks)):
        assert [place for mark in marked for place in mark] == sorted({place for mark in marked for place in mark})
        assert all(0 <= start < end <= len(shown) for start, end in marked)


def test_of_a_very_long_text_the_words_are_found_that_ranking_sees(tmp_path):
    long = "&amp; x" * (forward.MAX_WORDS - 1)
    index = written(tmp_path, pd.DataFrame([listing(0, "Tent", f"{long} guitar lamp"), listing(1, f"{long} Lamp sofa", "")]))
    assert [found(index, word) for word in ("tent", "guitars", "lamp", "sofa")] == [[0], [0], [1], []]


def test_listings_without_any_word_can_be_written(tmp_path):
    empty = {"name": "", "description": "!", "category": "", "price": np.nan, "town": "", "county": "", "posted_on": ""}
    index = written(tmp_path, pd.DataFrame([empty, empty]))
    for typed in ("guitar nothing", "guitra", "", "?"):
        assert found(index, typed) == [] and index.search(with_all(typed))[1] == 0
    counts = index.counts(None)
    assert not counts.categories and not counts.towns and not sum(counts.prices.values())
    assert index.search(None, sort="price_up")[1] == 2 and index.search(None, Filters(location="", category=""))[1] == 0


def test_no_listing_at_all_can_be_written(tmp_path):
    words.write(tmp_path, [], [])
    index = words.WordIndex(tmp_path)
    assert len(index) == 0 and index.search(None)[1] == 0 and found(index, "bed") == []
    assert index.count(with_all("bed")) == index.frequency("bed") == 0 and index.name_words() == []
    assert not index.counts(None).categories and set(index.counts(None).prices.values()) == {0}


# Filters, counts, sorting.


def passing(table: pd.DataFrame, filters: Filters) -> np.ndarray:
    """(listings,) bool of those that pass, by pandas."""
    mask = pd.Series(True, table.index)
    if filters.category is not None:
        wanted = [level.strip() for level in filters.category.lower().split(" / ")]
        levels = table["category"].str.lower().str.split(" / ")
        at_any = levels.map(lambda path: wanted[0] in path if len(wanted) == 1 else False)
        mask &= at_any | levels.map(lambda path: path[: len(wanted)] == wanted)
    if filters.min_price is not None:
        mask &= table["price"].astype(np.float32) >= np.float32(min(filters.min_price, 3e38))
    if filters.max_price is not None:
        mask &= table["price"].astype(np.float32) <= np.float32(min(filters.max_price, 3e38))
    if filters.location is not None:
        wanted = ", ".join(part.strip() for part in filters.location.lower().split(","))
        called = [
            {name for name in (f"{town}, {county}".strip(", "), town, county, *town.split(", ")) if name}
            | ({f"{part}, {county}" for part in town.split(", ")} if county else set())
            for town, county in zip(table["town"].str.lower(), table["county"].str.lower(), strict=True)
        ]
        exactly = pd.Series([wanted in one for one in called], table.index, bool)
        beginning = pd.Series([any(name.startswith(wanted) for name in one) for one in called], table.index, bool)
        mask &= exactly if exactly.any() else beginning
    return mask.to_numpy()


PRICE = st.none() | st.sampled_from([0.0, 9.99, 10.0, 12.34, 24.99, 25.0, 1234.56, 0.1, 1e39]) | st.floats(0, 2000)
FILTERS = st.builds(
    Filters,
    st.sampled_from([None, "Home", "HOME / beds", "Beds", "Music / Home", "Music", "Beds / Home", "Garden", "Hom"]),
    PRICE,
    PRICE,
    st.sampled_from(
        [None, "London", "lond", "LONDON, greater london", "Greater London", "Hanley, Stoke-on-Trent, Staffordshire",
         "Hanley", "Stoke-on-Trent", "Stoke", "Hanley , Staffordshire", "Staffordshire", "Stafford", "Staff",
         "Londonderry", "Leeds", "Kent"]
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(FILTERS)
def test_filters_select_the_listings_that_pandas_selects(index, filters):
    mask = passing(TABLE, filters)
    keys, total = index.search(None, filters, k=100)
    counts = index.counts(None, filters)
    assert set(rows_of(keys)) == set(np.flatnonzero(mask).tolist()) and total == mask.sum()
    selected = TABLE[mask]
    assert counts.towns == selected["town"].value_counts().to_dict()
    assert counts.counties == Counter(county for county in selected["county"] if county)
    assert counts.categories == Counter(
        " / ".join(path.split(" / ")[:depth]) for path in selected["category"] for depth in range(1, path.count("/") + 2)
    )
    for (low, high), count in counts.prices.items():
        assert count == passing(selected, Filters(min_price=low, max_price=high)).sum()
    assert sum(counts.prices.values()) == selected["price"].notna().sum()
    assert found(index, "lovely guitar bed", 100, filters) == np.flatnonzero(mask).tolist()  # all hold the first
    guitars = mask & TABLE["name"].str.contains("uitar")
    assert found(index, "guitar", 100, filters) == np.flatnonzero(guitars).tolist()
    assert index.search(with_all("guitar lovely"), filters)[1] == index.count(with_all("guitar"), filters) == guitars.sum()
    assert index.counts(with_all("guitar"), filters).towns == TABLE[guitars]["town"].value_counts().to_dict()
    top = index.candidates(["lovely", "bed"], [], 3, filters)
    assert len(top) == min(3, mask.sum()) and (mask & TABLE["name"].str.contains("(?i)bed")).sum() >= sum(
        "bed" in NAMES[row].lower() for row in rows_of(top)
    ) == min(3, (mask & TABLE["name"].str.contains("(?i)bed")).sum())


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> catalogue.Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    table = TABLE.assign(product_id=[str(row) for row in range(len(TABLE))])
    catalogue.write(folder, [table], ["a photo"], np.array([0]))
    np.save(folder / catalogue.LISTING_KEYS, np.arange(len(TABLE)))
    words.write(folder, [table], [np.arange(len(TABLE))])
    return catalogue.Catalogue(folder)


@settings(deadline=None, max_examples=100)
@given(FILTERS)
def test_filters_select_the_same_listings_in_the_index_and_in_the_columns(index, listed, filters):
    allowed = listed.allowed(filters)
    rows = range(len(TABLE)) if allowed is None else np.flatnonzero(allowed).tolist()
    assert sorted(rows_of(index.search(None, filters, k=100)[0])) == list(rows)


def test_results_are_sorted_by_price_and_date_those_without_either_last(index):
    price, day = TABLE["price"].to_numpy(), TABLE["posted_on"].to_numpy()
    cheapest, dearest = (rows_of(index.search(None, sort=sort, k=50)[0]) for sort in ("price_up", "price_down"))
    priced = np.count_nonzero(~np.isnan(price))
    assert price[cheapest[:priced]].tolist() == sorted(price[~np.isnan(price)])
    assert price[dearest[:priced]].tolist() == sorted(price[~np.isnan(price)], reverse=True)
    assert np.isnan(price[cheapest[priced:]]).all() and np.isnan(price[dearest[priced:]]).all()
    newest = rows_of(index.search(None, k=50)[0])
    assert day[newest].tolist() == sorted(day, reverse=True)  # "" is the least
    pages = [row for offset in range(0, 15, 4) for row in rows_of(index.search(None, sort="price_up", k=4, offset=offset)[0])]
    assert pages == cheapest
    either = (Alternative(("lamp",), 1.0, "", "lamp"), Alternative(("guitar",), 0.8, "synonym", "guitar"))
    lamps = rows_of(index.search(Wanted((either,), np.empty(0, np.int64)), sort="price_down")[0])
    assert lamps == [row for row in dearest if row in {0, 2, 4, 5}]


def test_all_of_more_than_a_thousand_are_counted_and_those_alike_come_in_the_order_of_their_rows(tmp_path):
    table = named(*["Pine bed"] * 1001).assign(category="")
    keys = np.arange(1, 1002)
    words.write(tmp_path, [table[:500], table[500:]], [keys[:500], keys[500:]])
    index = words.WordIndex(tmp_path)
    assert index.search(with_all("bed"), k=3)[1] == 1001 and index.candidates(["bed"], meant("bed"), 3).tolist() == [1, 2, 3]
    assert index.search(with_all("bed"), Filters(min_price=0.0))[1] == sum(table["price"].notna())


def test_the_beginning_of_a_place_finds_all_of_many_places(tmp_path):
    table = named(*["Bed"] * 300)
    table["town"] = [f"Newtown {number}" for number in range(300)]
    words.write(tmp_path, [table], [np.arange(1, 301)])
    index, filters = words.WordIndex(tmp_path), Filters(location="newt")
    assert index.search(None, filters)[1] == 300 and len(index.counts(None, filters).towns) == 300


# Snippets.


def test_a_snippet_marks_the_words_that_were_looked_for(index):
    long = "Nothing here. " * 30 + "A café guitár &amp; two lam\u00adps, good <b>guitars</b>. " + "Nothing more. " * 30
    snippet = index.highlighter(meant("guitar lamp")).snippet(long)
    assert len(snippet.text) <= words.SNIPPET_CHARACTERS
    assert [snippet.text[start:end] for start, end in snippet.marks] == ["guitár", "lamps", "guitars"]
    assert "&" in snippet.text and "&amp;" not in snippet.text


def test_a_snippet_without_any_word_is_the_beginning(index):
    highlighter = index.highlighter(meant("guitar"))
    assert highlighter.snippet("Something else " * 50) == words.Snippet(("Something else " * 50)[:160], [])
    assert highlighter.snippet("") == words.Snippet("", [])


@pytest.mark.parametrize(
    ("typed", "name", "marked"),
    [
        ("guitar lamp", "Two GUITARS, one lamp-stand", ["GUITARS", "lamp"]),
        ("guitar", "Lamp &amp; gui\u00adtar &#163;5 &mdash; guitars", ["gui\u00adtar", "guitars"]),
        ("cafe chair", "Cafe\u0301 ch&aacute;irs", ["Cafe\u0301", "ch&aacute;irs"]),
        ("bed", "b&eacute;d", ["b&eacute;d"]),
        ("guitar", "Grand piano", []), ("guitar", "", []), ("", "Guitar", []), ("?", "Guitar", []),
    ],
)  # fmt: skip
def test_words_are_marked_in_a_name_as_it_is_written(index, typed, name, marked):
    assert [name[start:end] for start, end in index.highlighter(meant(typed)).marks(name)] == marked


def test_every_alternative_of_a_word_is_marked_where_all_its_stems_are(index):
    either = (Alternative(("lamp",), 1.0, "", "lamp"), Alternative(("wash", "machin"), 0.8, "synonym", "washing machine"))
    name = "Lamps, a washing machine"
    marked = [name[start:end] for start, end in index.highlighter([either]).marks(name)]
    assert marked == ["Lamps", "washing", "machine"]


SOLD = ["guitar", "Guitars", "g&uuml;itar", "lamp", "LAMPS", "sofa", "&amp;", "ta\u00adble", "a,b", "é"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(SOLD)), st.sampled_from(["guitar", "lamp", "guitar lamp", "sofa"]))
def test_marks_lie_on_the_words_typed_and_on_all_of_them(index, sold, typed):
    text = " ".join(sold)
    expected = [word for word in sold if set(map(analysis.stem, analysis.split(word))) & set(typed.split()) and word != "sofa"]
    highlighter = index.highlighter(meant(typed))
    assert [text[start:end] for start, end in highlighter.marks(text)] == expected
    snippet = highlighter.snippet(text, 10_000)
    assert [snippet.text[start:end] for start, end in snippet.marks] == [analysis.clean(word) for word in expected]


# Updates.


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / words.FOLDER).iterdir()}


QUERIES = ("guitar bed good lamp", "lovely number", "guitra", "bicyc", "camp 64GB", "gui", "iphone 8 washing", "fresh")


def answers(index: words.WordIndex) -> list:
    """What does not depend on when the listings came: which are found, counted and in what order where that is sorted by."""
    found = []
    for query in QUERIES:
        candidates = index.candidates(analysis.split(query), meant(query), 100).tolist()
        found.append((query, candidates, index.count(with_all(query)), index.counts(with_all(query))))
        for word in analysis.split(query):
            stem = analysis.stem(word)
            found.append((word, index.frequency(word) > 0, index.stem_frequency(stem) > 0, index.names_with((stem,))))
            found.append(sorted(index.words_beginning(word[:3], 1000)))
    for sort in ("price_up", "price_down", "newest"):
        found.append(index.search(None, sort=sort, k=100)[0].tolist())
    for location in ("lond", "Stafford", "Hanley"):
        found.append(sorted(index.search(None, Filters(location=location), k=100)[0].tolist()))
    return found


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_random_updates_give_the_answers_of_a_full_write(seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        live = {int(key): row for key, row in zip(KEYS.tolist(), TABLE.to_dict("records"), strict=True)}
        first, later = dict(list(live.items())[:10]), list(live.items())[10:]
        live = first
        written(root / "0", pd.DataFrame(list(live.values())), np.array(list(live)))
        for number in range(1, chance.randrange(2, 5)):
            gone = chance.sample(sorted(live), chance.randrange(len(live)))
            changed = {key: live[key] | {"name": f"Fresh thing {number}"} for key in gone if chance.random() < 0.5}
            came = changed | dict(later[(number - 1) * 2 : number * 2])
            live = {key: row for key, row in live.items() if key not in gone} | came
            before = contents(root / str(number - 1))
            (root / str(number)).mkdir()
            blocks = [pd.DataFrame(list(came.values()))] if came else []
            keys = [np.array(list(came), np.int64)] if came else []
            words.update(root / str(number - 1), root / str(number), np.array(gone, np.int64), blocks, keys)
            assert contents(root / str(number - 1)) == before
        updated = words.WordIndex(root / str(number))
        once = written(root / "once", pd.DataFrame(list(live.values()), columns=TABLE.columns), np.array(list(live), np.int64))
        assert len(updated) == len(live)
        assert answers(updated) == answers(once)


def test_many_updates_leave_few_segments(tmp_path):
    words.write(folder_of(tmp_path, "0"), [TABLE], [KEYS])
    for number in range(1, 13):
        table, keys, published = named(f"Fresh thing {number}"), np.array([number]), tmp_path / str(number - 1)
        before = contents(published)
        words.update(published, folder_of(tmp_path, str(number)), np.empty(0, np.int64), [table], [keys])
        assert contents(published) == before
    index = words.WordIndex(tmp_path / "12")
    assert len(index) == len(TABLE) + 12 and index._searcher.num_segments < 9
    assert index.candidates(["fresh"], meant("fresh"), 50).tolist() == list(range(1, 13))
    assert len(contents(tmp_path / "12")) < 9 * 8  # nothing of segments that were merged


def test_a_generation_is_served_while_the_next_is_written_from_its_files(tmp_path):
    old = written(tmp_path / "old", TABLE)
    before, seen = contents(tmp_path / "old"), []
    (tmp_path / "new").mkdir()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(found(old, "guitar"))

    asker = threading.Thread(target=ask)
    asker.start()
    fresh = pd.DataFrame([listing(row, "Fresh guitar", "") for row in range(200)])
    words.update(tmp_path / "old", tmp_path / "new", KEYS[:1], [fresh], [np.arange(1, 201)])
    stop.set()
    asker.join()
    assert seen and all(rows == seen[0] for rows in seen) and contents(tmp_path / "old") == before
    linked = [name for name in before if (tmp_path / "new" / words.FOLDER / name).stat().st_nlink == 2]
    assert len(linked) == len(before) - 2  # what says which files belong to the index
    assert len(words.WordIndex(tmp_path / "new")) == len(TABLE) + 199


def test_an_open_index_needs_its_files_no_more_and_leaves_nothing_in_its_folder(tmp_path):
    index = written(tmp_path, TABLE)
    assert not list((tmp_path / words.FOLDER).glob("*.lock")) and len(list((tmp_path / words.FOLDER).iterdir())) >= 6
    expected = answers(index)
    shutil.rmtree(tmp_path / words.FOLDER)
    assert answers(index) == expected and index.highlighter(meant("guitar")).snippet("A guitar").marks == [(2, 8)]


def test_nothing_of_a_deleted_listing_is_in_an_index_written_anew(tmp_path):
    secret = pd.DataFrame([listing(0, "Zyxomma", "Her zephyrine") | {"town": "Qwertzstadt", "county": "Qwertzland"}])
    key = np.array([0x7A7978777675747])
    words.write(folder_of(tmp_path, "old"), [TABLE, secret], [KEYS, key])
    words.update(tmp_path / "old", folder_of(tmp_path, "new"), key, [], [])
    words.write(folder_of(tmp_path, "purged"), [TABLE], [KEYS])
    for name, is_there in (("old", True), ("new", True), ("purged", False)):
        held = b"".join(contents(tmp_path / name).values()).lower()
        assert (b"qwertzstadt" in held) == is_there and (b"qwertzland" in held) == is_there, name
        index = words.WordIndex(tmp_path / name)  # the words are compressed where the index holds them
        for field in ("name", "name_exact", "description", "description_exact"):
            terms = [term for letter in "hz" for term, _ in index._searcher.terms_with_prefix(field, letter)]
            assert any(term.startswith(("zyx", "zeph")) for term in terms) == is_there, name
    updated = words.WordIndex(tmp_path / "new")
    assert found(updated, "zyxomma zephyrine") == [] and updated.count(with_all("zyxomma")) == 0


def read_as(index: words.WordIndex, text: str) -> tuple[list[int], dict[str, str]]:
    """Rows of the candidates for a text's words as they are read, corrected or as the beginnings of others; the corrections."""
    read = Reader(index, Synonyms([])).read(text)
    required = [word.alternatives for word in read.required]
    return sorted(rows_of(index.candidates([word.exact for word in read.words], required, 20))), read.corrections


@pytest.mark.parametrize(
    ("query", "before", "after"),
    [
        ("gutiar", ([1], {}), ([0], {"gutiar": "guitar"})),
        ("gutiarr", ([1], {"gutiarr": "gutiar"}), ([2], {"gutiarr": "gutiary"})),  # as near, but the other came first
        ("sutiar", ([1], {"sutiar": "gutiar"}), ([], {})),
        ("guti", ([1, 2, 3], {}), ([2, 3], {})),
    ],
)
def test_a_word_that_only_listings_hold_which_are_gone_stands_for_others(query, before, after, tmp_path):
    old = written(tmp_path / "old", named("Acoustic guitar", "Gutiar", "Gutiary", "Gutierrez bag"))
    assert read_as(old, query) == before
    (tmp_path / "new").mkdir()
    words.update(tmp_path / "old", tmp_path / "new", KEYS[1:2], [], [])
    new = words.WordIndex(tmp_path / "new")
    assert read_as(new, query) == after
    assert "gutiar" in dict(new.name_words())  # its files hold it still: whoever reads them asks for the frequency
    assert new.frequency("gutiar") == new.stem_frequency("gutiar") == new.names_with(("gutiar",)) == 0
    assert not new.holds(("gutiar",)) and set(new.words_beginning("guti", 8)) == {"gutiari", "gutierrez"}


def test_a_word_is_never_in_more_listings_than_there_are(tmp_path):
    written(tmp_path / "old", named(*["Pine bed"] * 10))
    (tmp_path / "new").mkdir()
    words.update(tmp_path / "old", tmp_path / "new", KEYS[:6], [], [])
    index = words.WordIndex(tmp_path / "new")
    assert index.frequency("bed") == index.stem_frequency("bed") == index.names_with(("bed",)) == len(index) == 4
    assert Reader(index, Synonyms([])).read("bed").words[0].rarity > 0


def test_a_place_that_only_listings_hold_which_are_gone_is_the_beginning_of_others(tmp_path):
    table = named("One", "Two")
    table["town"], table["county"] = ["Staff", "Stafford"], ""
    assert written(tmp_path / "old", table).search(None, Filters(location="staff"))[1] == 1
    (tmp_path / "new").mkdir()
    words.update(tmp_path / "old", tmp_path / "new", KEYS[:1], [], [])
    assert words.WordIndex(tmp_path / "new").search(None, Filters(location="staff"))[0].tolist() == [KEYS[1]]


@pytest.mark.parametrize("gone", [np.array([5]), np.append(KEYS[:2], 5)])
def test_an_update_of_listings_that_are_not_there_is_refused(tmp_path, gone):
    written(tmp_path / "old", TABLE)
    (tmp_path / "new").mkdir()
    with pytest.raises(StageError) as error:
        words.update(tmp_path / "old", tmp_path / "new", gone, [], [])
    left = len(TABLE) - np.isin(gone, KEYS).sum()
    assert str(error.value) == (
        f"{tmp_path / 'old' / 'words'} does not hold the listings of its generation ({left} after the update, not {left - 1}):"
        " run python build_index.py --full"
    )


def test_a_missing_or_damaged_index_is_one_sentence(tmp_path):
    with pytest.raises(StageError, match=r"words is missing or damaged \(.*\): run python build_index.py --full"):
        words.WordIndex(tmp_path)
    written(tmp_path, TABLE)
    (tmp_path / words.FOLDER / "meta.json").write_text("{")
    with pytest.raises(StageError, match=r"words is missing or damaged \(.*\): run python build_index.py --full"):
        words.WordIndex(tmp_path)
    with pytest.raises(StageError, match=rf"^{tmp_path}/words is missing or damaged \(.*\): run python build_index.py --full$"):
        words.update(tmp_path, folder_of(tmp_path, "new"), KEYS[:1], [], [])


def test_the_same_answers_come_to_all_threads(index):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(read_as(index, "lovely guitra"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(list(range(15)), {"guitra": "guitar"})] * 8


def test_days_before_1970_and_times_of_day_are_dates(tmp_path):
    table = named("One", "Two", "Three")
    table["posted_on"] = ["1969-12-31", "2020-01-01T23:59", datetime.date.max.isoformat()]
    assert rows_of(written(tmp_path, table).search(None, sort="newest")[0]) == [2, 1, 0]
