"""One generation of the index, opened: queries in, ranked and explained listings out."""

import contextlib
import copy
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from marketplace.cleaning import listings
from marketplace.files import reading
from marketplace.models import photo_model, text_model
from marketplace.models.text_encoder import TextEncoder
from marketplace.retrieval import answers, milvus, several
from marketplace.retrieval.answers import Hit
from marketplace.retrieval.catalogue import PLACES, Catalogue, Filters
from marketplace.retrieval.categories import CategoryTree
from marketplace.retrieval.ranking import KINDS, Ranker
from marketplace.retrieval.typed_search import Candidates, Typed, TypedSearch, is_sentence
from marketplace.retrieval.words import Counts, Sort, Wanted

WINDOW = 100  # results are ranked this many at a time, then ten times as many: a later page never changes an earlier one
CANDIDATES = 2  # of each kind of evidence, for each result of the window
DEEPER = 3  # times as many at most, for a query of several listings: their mean is near to few, and between many
MANY_EXCLUDED = 500  # listings that are no answer: to leave more out by a filter takes less time than to look that much deeper
NEAREST = 3  # listings shown beside an answer of nothing
LEAST_FILTERED = 0.5  # score that the best listing must have where filters leave out what is meant, or nothing is close
SAME_KIND = 0.5  # of a category's agreement, from which a listing is said to be of the same kind
Step = Callable[[str], AbstractContextManager]


@dataclass
class Query:
    """Evidence to look for; any of it may be missing.

    photos: (n, D) vectors; text: (T,) vector; typed: a person's words; category: (codes,) probabilities of CategoryTree;
    price: in the table's currency; place: codes of town and county. excluded_rows: listings that are no answer, such as the one
    that asks; viewed: how many of the catalogue's listings ask; weights: by kind of evidence, what the ranker's own are
    multiplied by; photo_lists, text_lists: VectorIndex.probed() of the photos and the text, where that was asked for.
    """

    photos: np.ndarray | None = None
    text: np.ndarray | None = None
    typed: Typed | None = None
    category: np.ndarray | None = None
    price: float | None = None
    place: tuple[int, int] | None = None
    excluded_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    viewed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    photo_lists: Sequence[np.ndarray] | None = None
    text_lists: np.ndarray | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of evidence that there is anything of, as evidence() names them."""
        evidence = (self.photos, self.text, self.typed, self.category, self.price, self.place)
        return [kind for kind, own in zip(KINDS, evidence, strict=True) if own is not None]

    @property
    def is_typed_alone(self) -> bool:
        return self.photos is None and self.text is None


@dataclass(frozen=True)
class Ranked:
    """Candidates, best first: rows (N,), those of each one's photo nearest to the query's, scores, and the parts of these."""

    rows: np.ndarray
    photos: np.ndarray
    scores: np.ndarray
    parts: dict[str, np.ndarray]

    def among(self, rows: np.ndarray) -> "Ranked":
        """Those of some rows alone."""
        kept = np.isin(self.rows, rows)
        parts = {kind: values[kept] for kind, values in self.parts.items()}
        return Ranked(self.rows[kept], self.photos[kept], self.scores[kept], parts)


@dataclass(frozen=True)
class Found:
    """Listings found, as answers.describe() tells them, and how many the whole result holds that they are a part of; counts: of
    the whole result, None where they were not asked for; nearest: what comes nearest where nothing is close; corrections:
    misspelt words, and what was read."""

    results: list[dict]
    total: int
    counts: Counts | None = None
    nearest: list[dict] = field(default_factory=list)
    corrections: dict[str, str] = field(default_factory=dict)


class OpenIndex:
    """The catalogue, vectors, words, category tree and ranker of one generation; safe to use from many threads.

    It answers queries whose vectors are there already, such as those of its own listings, and a person's words.
    """

    def __init__(self, folder: Path, server: milvus.Server | None = None):
        """server: of the vectors, in place of the one that the generation tells of, where it does. Raises StageError when files
        are missing or do not belong together, and vectors.Unavailable."""
        self.generation = self.version = folder.name
        self.catalogue = Catalogue(folder)
        self.photo_index = milvus.open_vectors(folder, "photos", server)
        self.text_index = milvus.open_vectors(folder, "listings", server)
        self.text_encoder = TextEncoder.load(folder)  # None where the models were trained without one
        self.typed_search = TypedSearch(folder, self.catalogue, self.text_encoder, server)
        self.dimension = self.photo_index.dimension
        self.ranker = Ranker.load(folder / "ranker.json")
        self.classes = photo_model.Description.load(folder).classes
        paths = reading.read_json(folder / text_model.DESCRIPTION)["paths"]
        columns, names = self.catalogue.columns, self.catalogue.names
        self.tree = CategoryTree(columns["category"], names["category"], self.classes, paths)

    def hiding(self, product_ids: Collection[str]) -> Self:
        """The same index, which answers as though the listings of some ids were not there; they share their files and models.

        Its version, by which answers that a client has kept are told to be the same, is another.
        """
        view = copy.copy(self)
        view.catalogue = self.catalogue.hiding(product_ids)
        view.version = f"{self.generation}-{hashlib.blake2b(view.catalogue.hidden_rows.tobytes(), digest_size=6).hexdigest()}"
        view.typed_search = self.typed_search.over(view.catalogue)
        return view

    def typed(self, text: str) -> Query:
        """A query of a person's words alone."""
        return Query(typed=self.typed_search.read(text))

    def query_by(
        self,
        models: text_model.TableModels,
        vectors: np.ndarray | None = None,
        text: str | None = None,
        probabilities: np.ndarray | None = None,
    ) -> Query:
        """A query from a photo's vector (D,), or those of several (n, D), and (C,) category probabilities, a person's words, or
        all of them; of several photos the one that is most like a listing's counts.

        models: those of the generation, which read the words.
        """
        query = Query(photos=None if vectors is None else np.atleast_2d(vectors), typed=self.typed_search.read(text or ""))
        by_text = paths = None
        if query.typed is not None:  # blanks and punctuation are no evidence
            title, _, description = text.partition("\n")
            encoded, probable = models.read([listings.text(title, description).strip()])
            if encoded.any():
                query.text, by_text = encoded[0], probable
                paths = models.path_probabilities(encoded)[0]
        if by_text is not None or probabilities is not None:
            by_photo = None if probabilities is None else probabilities[None]
            query.category = self.tree.predicted(models.fuse(by_photo, by_text)[0], paths)
        return query

    def query_of(self, listing_row: int) -> Query:
        """A query for listings like one of the catalogue's own."""
        vector = self.text_index.vectors_of(np.array([listing_row]))[0]
        rows = self.catalogue.photos_of(listing_row)
        levels = self.tree.own_levels(listing_row)
        price = float(self.catalogue.columns["price"][listing_row])
        return Query(
            photos=self.photo_index.vectors_of(rows) if len(rows) else None,
            text=vector if vector.any() else None,
            category=levels if levels.any() else None,
            price=price if price > 0 else None,
            place=self.place_of(listing_row),
            excluded_rows=np.array([listing_row]),
            viewed=1,
        )

    def queries_of(self, listing_rows: Iterable[int]) -> list[Query]:
        """query_of() each of many, which are answered the same in less time."""
        queries = [self.query_of(row) for row in listing_rows]
        with_photos, with_text = ([one for one in queries if kind in one.kinds] for kind in ("photo", "text"))
        if with_photos:
            lists = iter(self.photo_index.probed(np.concatenate([query.photos for query in with_photos])))
            for query in with_photos:
                query.photo_lists = [next(lists) for _ in query.photos]
        if with_text:
            lists = self.text_index.probed(np.stack([query.text for query in with_text]))
            for query, own in zip(with_text, lists, strict=True):
                query.text_lists = own
        return queries

    def place_of(self, listing_row: int) -> tuple[int, int] | None:
        """Codes of town and county; None where it has neither."""
        codes = tuple(int(self.catalogue.columns[kind][listing_row]) for kind in PLACES)
        return codes if any(self._place_names(codes)) else None

    def _place_names(self, codes: tuple[int, int]) -> list[str]:
        return [self.catalogue.names[kind][code] for kind, code in zip(PLACES, codes, strict=True)]

    def recommend(
        self,
        query: Query,
        k: int,
        filters: Filters = Filters(),  # noqa: B008
        offset: int = 0,
        min_score: float = 0.0,
        diversity: float = 0.0,
        step: Step = contextlib.nullcontext,
    ) -> list[dict]:
        """The hits of like(), as a client gets them."""
        hits = self.like(query, k, filters, offset, min_score, diversity, step)
        return self._describe(hits, query)

    def like(
        self,
        query: Query,
        k: int,
        filters: Filters = Filters(),  # noqa: B008
        offset: int = 0,
        min_score: float = 0.0,
        diversity: float = 0.0,
        step: Step = contextlib.nullcontext,
    ) -> list[Hit]:
        """Listings that the evidence speaks for most, best first, from place `offset` on, at most k, none below min_score.

        diversity: how much the first WINDOW are spread, as several.diversify() does. Raises ValueError where the query's weights
        leave nothing to compare by. step: entered around the "search" for candidates and their "rank".
        """
        allowed = self.catalogue.allowed(filters)
        if len(query.excluded_rows) > MANY_EXCLUDED:
            allowed = np.ones(self.catalogue.n_products, bool) if allowed is None else allowed
            allowed[query.excluded_rows] = False
            query = replace(query, excluded_rows=query.excluded_rows[:0])

        def rank(window: int) -> Ranked:
            return self._rank_by_evidence(query, window, allowed, filters, step=step)

        if diversity:  # always of the same hits, whatever the page
            hits = _reaching(min_score, self._hits(rank, 0, max(offset + k, WINDOW), allowed, query.excluded_rows))
            return [*several.diversify(self, hits[:WINDOW], diversity), *hits[WINDOW:]][offset : offset + k]
        return _reaching(min_score, self._hits(rank, offset, offset + k, allowed, query.excluded_rows))

    def search(
        self,
        query: Query,
        k: int,
        filters: Filters = Filters(),  # noqa: B008
        offset: int = 0,
        min_score: float = 0.0,
        sort: Sort | None = None,
        with_counts: bool = False,
        step: Step = contextlib.nullcontext,
    ) -> Found:
        """The listings of a page, by a person's words alone, or all that pass the filters where there are none.

        sort: None for relevance, and without words for the newest first; listings that are sorted otherwise are not folded, and
        have no score. total and counts are those of every page together, folded listings and those below min_score among them.
        """
        typed = query.typed
        if typed is None:
            return self._sorted(query, None, k, filters, offset, sort or "newest", with_counts)
        allowed = self.catalogue.allowed(filters)
        with step("search"):
            candidates = self.typed_search.candidates(typed, WINDOW, filters, allowed)
        with step("rank"):
            ranked = self._rank_typed(typed, candidates)
        corrections = typed.query.corrections
        is_close = candidates.is_close() and (filters == Filters() or ranked.scores[0] >= LEAST_FILTERED)
        if not is_close:
            hits = self._hits(lambda window: ranked, 0, NEAREST, allowed)
            nearest = self._describe(hits, query)
            return Found([], 0, None, [listing | {"close": False} for listing in nearest], corrections)
        result = self.typed_search.result(typed, candidates, filters)
        if sort is not None:
            found = self._sorted(query, result.wanted, k, filters, offset, sort, with_counts)
            return replace(found, corrections=corrections)

        def rank(window: int) -> Ranked:
            more = candidates
            if window != WINDOW:
                with step("search"):
                    more = self.typed_search.candidates(typed, window, filters, allowed)
            more = self.typed_search.members(typed, result, more, window, filters, allowed)
            kept = more.rows[self.typed_search.is_in(result, more)]
            if more is candidates:
                return ranked.among(kept)
            with step("rank"):
                return self._rank_typed(typed, more).among(kept)

        hits = _reaching(min_score, self._hits(rank, offset, offset + k, allowed))
        counts = self.catalogue.words.counts(result.wanted, filters, self.catalogue.price_steps) if with_counts else None
        described = self._describe(hits, query)
        return Found(described, result.total, counts, corrections=corrections)

    def _describe(self, hits: list[Hit], query: Query) -> list[dict]:
        rows = np.array([hit.row for hit in hits], np.int64)
        if query.is_typed_alone:
            alike = self.typed_search.alike(query.typed, rows) if query.typed is not None else {}
        else:
            alike = {}
            if query.category is not None and len(self.catalogue.names["category"]) > 1:  # of one kind alone all are
                alike["category"] = self.tree.agreement(query.category, rows) >= SAME_KIND
            alike["text"] = np.ones(len(rows), bool)
        return answers.describe(self.catalogue, self.typed_search, hits, query, alike)

    def _sorted(
        self, query: Query, wanted: Wanted | None, k: int, filters: Filters, offset: int, sort: Sort, with_counts: bool
    ) -> Found:
        keys, total = self.catalogue.words.search(wanted, filters, sort, k, offset)
        rows = self.catalogue.row_of_key.rows(keys)
        photos = [None if photo < 0 else photo for photo in self._best_photos(Query(), rows)[0].tolist()]
        hits = [Hit(row, photo, None, {}, []) for row, photo in zip(rows.tolist(), photos, strict=True)]
        counts = self.catalogue.words.counts(wanted, filters, self.catalogue.price_steps) if with_counts else None
        return Found(self._describe(hits, query), total, counts)

    def ranked(self, query: Query, k: int, excluded: np.ndarray, kinds: Collection[str] = KINDS) -> np.ndarray:
        """Rows of the k listings that an answer would give were the `excluded` rows not there, by the given evidence only."""
        allowed = np.ones(self.catalogue.n_products, bool)
        allowed[excluded] = False

        def rank(window: int) -> Ranked:
            if query.is_typed_alone and query.typed is not None:
                return self._rank_typed(
                    query.typed, self.typed_search.candidates(query.typed, CANDIDATES * window, None, allowed)
                )
            return self._rank_by_evidence(query, window, allowed, kinds=kinds)

        return np.array([hit.row for hit in self._hits(rank, 0, k, allowed, query.excluded_rows)], int)

    def _hits(
        self,
        rank: Callable[[int], Ranked],
        start: int,
        stop: int,
        allowed: np.ndarray | None,
        excluded_rows: Collection[int] = (),
    ) -> list[Hit]:
        """The hits from place `start` on, before `stop`, duplicates folded; one has its place whatever the two are.

        rank: gives what the first `window` results are taken from, fewer only where no more are there.
        """
        groups = self.catalogue.columns["duplicates"]
        hits: list[Hit] = []
        seen = np.empty(0, groups.dtype)
        window = WINDOW
        while True:
            ranked = rank(window)
            group_of = groups[ranked.rows]
            first = np.sort(np.unique(group_of, return_index=True)[1])  # of each group, by score
            fresh = (first[~np.isin(group_of[first], seen)] if len(seen) else first)[: window - len(seen)]
            told = fresh[max(start - len(seen), 0) : max(stop - len(seen), 0)]
            parts = {kind: values[told].tolist() for kind, values in ranked.parts.items()}
            columns = (values[told].tolist() for values in (ranked.rows, ranked.photos, ranked.scores))
            for place, (row, photo, score) in enumerate(zip(*columns, strict=True)):
                own_parts = {kind: values[place] for kind, values in parts.items()}
                folded = self._folded(row, allowed, excluded_rows)
                hits.append(Hit(row, None if photo < 0 else photo, score, own_parts, folded))
            seen = np.concatenate([seen, group_of[fresh]])
            if len(seen) >= stop or len(ranked.rows) < window:
                return hits
            window *= 10

    def _rank_typed(self, typed: Typed, candidates: Candidates) -> Ranked:
        order, scores, parts = self.ranker.rank_typed(self.typed_search.score(typed, candidates), is_sentence(typed, candidates))
        rows = candidates.rows[order]
        parts = {kind: values[order] for kind, values in parts.items()}
        return Ranked(rows, self._best_photos(Query(), rows)[0], scores[order], parts)

    def _rank_by_evidence(
        self,
        query: Query,
        window: int,
        allowed: np.ndarray | None,
        filters: Filters | None = None,
        kinds: Collection[str] = KINDS,
        step: Step = contextlib.nullcontext,
    ) -> Ranked:
        with step("search"):
            rows = self._window(query, window, allowed, filters)
        with step("rank"):
            evidence, photos = self.evidence(query, rows)
            ranker = several.reweighted(self.ranker, query) if query.weights else self.ranker
            order, scores, parts = ranker.rank({kind: values for kind, values in evidence.items() if kind in kinds})
        return Ranked(rows[order], photos[order], scores[order], {kind: values[order] for kind, values in parts.items()})

    def _window(self, query: Query, window: int, allowed: np.ndarray | None, filters: Filters | None) -> np.ndarray:
        """candidates() to rank for the first `window` results; fewer only where no more are there."""
        rows = self.candidates(query, allowed, CANDIDATES * window, filters)
        if len(rows) >= window:
            return rows
        # What passes the filters without any evidence, such as listings without a photo, comes last.
        others = np.ones(self.catalogue.n_products, bool) if allowed is None else allowed.copy()
        others[rows] = False
        others[self.catalogue.hidden_rows] = False
        others[query.excluded_rows] = False
        return np.concatenate([rows, np.flatnonzero(others)[: window - len(rows)]])

    def _folded(self, row: int, allowed: np.ndarray | None, excluded_rows: Collection[int]) -> list[int]:
        """Rows of the other listings of the same offer, which are folded into a hit."""
        copies = self.catalogue.duplicates_of(row)
        if len(copies) == 1:
            return []
        copies = self.catalogue.shown(copies) if allowed is None else copies[allowed[copies]]
        return [other for other in copies.tolist() if other != row and other not in excluded_rows]

    def candidates(
        self,
        query: Query,
        allowed: np.ndarray | None,
        depth: int = CANDIDATES * WINDOW,
        filters: Filters | None = None,
    ) -> np.ndarray:
        """Rows of the listings that any evidence finds, ascending; `depth` of each kind, at first as many as an answer is ranked
        from.

        allowed: (P,) bool, what may be found; filters: what it comes from, where it does, for the words' own index.
        """
        if allowed is not None and not allowed.any():
            return np.empty(0, np.int64)
        depth = depth * min(max(query.viewed, 1), DEEPER) + len(query.excluded_rows)
        found: list[np.ndarray] = []
        passing = self.catalogue.passing(allowed, filters)
        if query.photos is not None and self.catalogue.n_photos:
            listing_of_photo = self.catalogue.listing_of_photo
            passing_photos = None if passing is None else passing.of(listing_of_photo)
            for vector, lists in zip(query.photos, query.photo_lists or [None] * len(query.photos), strict=True):
                photos = functools.partial(
                    self.photo_index.nearest_groups, vector, group_of_row=listing_of_photo, passing=passing_photos, lists=lists
                )
                found.append(self.catalogue.first_shown(photos, depth))
        if query.text is not None:
            texts = lambda k: self.text_index.nearest(query.text, k, passing, query.text_lists)[0]  # noqa: E731
            found.append(self.catalogue.first_shown(texts, depth))
        if query.typed is not None:
            found.append(self.typed_search.find(query.typed, depth, filters, allowed))
        rows = np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
        kept = np.ones(len(rows), bool)  # with few numbers, what np.unique() and np.isin() take most time for is not their work
        kept[1:] = rows[1:] != rows[:-1]
        for row in query.excluded_rows.tolist():
            kept &= rows != row
        # Not by `allowed`: a search among all is faster than one with a filter.
        return self.catalogue.shown(rows[kept])

    def evidence(self, query: Query, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What speaks for each listing of `rows`: kind -> (N,) in [0, 1], and (N,) the row of its photo nearest to the query's,
        or of its first one; -1 where it has none.

        photo: its most alike photo; text: dense text similarity; words: as a search for them ranks, as a share of its highest
        score; category: how probable the levels of its path are; price: the smaller price as a share of the larger; place: 1 the
        same town, 0.5 the same county. NaN where a listing has no photo, path or price.
        """
        evidence: dict[str, np.ndarray] = {}
        best_photos, cosines = self._best_photos(query, rows)
        if query.photos is not None:
            evidence["photo"] = self.ranker.similarity("photo", cosines)
        if query.text is not None:
            evidence["text"] = self.ranker.similarity("text", self.text_index.cosines(query.text, rows))
        if query.typed is not None:
            evidence["words"] = self.typed_search.share(query.typed, rows)
        if query.category is not None:
            evidence["category"] = self.tree.agreement(query.category, rows)
        if query.price is not None:
            prices = self.catalogue.columns["price"][rows]
            prices = np.where(prices > 0, prices, np.nan)
            evidence["price"] = np.minimum(prices, query.price) / np.maximum(prices, query.price)
        if query.place is not None:
            evidence["place"] = self._nearness(query.place, rows)
        return evidence, best_photos

    def _best_photos(self, query: Query, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the row of each listing's photo nearest to the query's, or of its first one, -1 where it has none; and (N,) the
        cosine of the two, NaN where it has none."""
        photo_rows, counts = self.catalogue.photos_of_each(rows)
        alike = np.zeros(len(photo_rows), np.float32)
        if query.photos is not None:
            alike = np.max([self.photo_index.cosines(photo, photo_rows) for photo in query.photos], axis=0)
        best_first = np.lexsort((-alike, np.repeat(np.arange(len(rows)), counts)))
        best = best_first[(counts.cumsum() - counts)[counts > 0]]
        best_photos, cosines = np.full(len(rows), -1), np.full(len(rows), np.nan, np.float32)
        best_photos[counts > 0], cosines[counts > 0] = photo_rows[best], alike[best]
        return best_photos, cosines

    def _nearness(self, place: tuple[int, int], rows: np.ndarray) -> np.ndarray:
        """(N,) 1 for a listing of the same town, 0.5 of the same county."""
        town, county = (self.catalogue.columns[kind][rows] == code for kind, code in zip(PLACES, place, strict=True))
        by_town, by_county = map(bool, self._place_names(place))  # no name in common is nothing in common
        return np.where(town & county & by_town, 1.0, np.where(county & by_county, 0.5, 0.0))


def _reaching(min_score: float, hits: list[Hit]) -> list[Hit]:
    return [hit for hit in hits if round(hit.score, 6) >= min_score]
