"""One generation of the index, opened without models: queries in, ranked and explained listings out."""

import contextlib
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from marketplace.cleaning import listings
from marketplace.files import reading
from marketplace.models import photo_model, text_model
from marketplace.retrieval.catalogue import PLACES, Catalogue, Filters, search_words
from marketplace.retrieval.categories import CategoryTree
from marketplace.retrieval.ranking import KINDS, Ranker
from marketplace.retrieval.vectors import FILES, VectorIndex
from marketplace.retrieval.words import Counts, Sort

WINDOW = 100  # results are ranked this many at a time, then ten times as many: a later page never changes an earlier one
Matched = tuple[np.ndarray, np.ndarray]  # of Catalogue.match_words()
CANDIDATES = 2  # of each kind of evidence, for each result of the window
EXACT_TOTAL = 1000  # a larger total is given as "at least"
RESULT_FIELDS = ("product_id", "name", "category", "price", "price_plausible", "town", "county")
Step = Callable[[str], AbstractContextManager]


@dataclass
class Query:
    """Evidence to look for; any of it may be missing.

    photos: (n, D) vectors; text: (T,) vector; words: as typed; category: (codes,) probabilities of CategoryTree;
    price: pounds; place: codes of town and county; excluded_row: the listing that asks.
    """

    photos: np.ndarray | None = None
    text: np.ndarray | None = None
    words: str | None = None
    category: np.ndarray | None = None
    price: float | None = None
    place: tuple[int, int] | None = None
    excluded_row: int | None = None


@dataclass(frozen=True)
class Hit:
    """A listing found: its row, the row of its photo nearest to the query's, its score, the parts of that, and how many other
    listings with the same photo or text are folded into it. One that is not ranked has no score."""

    row: int
    photo_row: int | None
    score: float | None
    parts: dict[str, float]
    duplicates: int


@dataclass(frozen=True)
class Found:
    """Listings for a client, and how many the whole result holds that they are a part of: `total`, or as many at least; counts:
    of the whole result, None where they were not asked for."""

    results: list[dict]
    total: int
    total_is_at_least: bool
    counts: Counts | None

    @classmethod
    def among(cls, total: int, results: list[dict], counts: Counts | None) -> "Found":
        """total: however many."""
        return cls(results, min(total, EXACT_TOTAL), total > EXACT_TOTAL, counts)


class OpenIndex:
    """The catalogue, vectors, category tree and ranker of one generation; safe to use from many threads.

    It answers queries whose vectors are there already, such as those of its own listings.
    """

    def __init__(self, folder: Path):
        """Raises StageError when files are missing or do not belong together."""
        self.generation = folder.name
        self.catalogue = Catalogue(folder)
        self.photo_index = VectorIndex.open(folder, FILES["photos"])
        self.text_index = VectorIndex.open(folder, FILES["listings"])
        self.dimension = self.photo_index.index.d
        self.ranker = Ranker.load(folder / "ranker.json")
        self.classes = photo_model.Description.load(folder).classes
        paths = reading.read_json(folder / text_model.DESCRIPTION)["paths"]
        columns, names = self.catalogue.columns, self.catalogue.names
        self.tree = CategoryTree(columns["category"], names["category"], self.classes, paths)

    def query_by(
        self,
        models: text_model.TableModels,
        vector: np.ndarray | None = None,
        text: str | None = None,
        probabilities: np.ndarray | None = None,
        fuses_category: bool | None = None,
    ) -> Query:
        """A query from a photo's vector and its (C,) category probabilities, a person's words, or all of them.

        models: those of the generation, which read the words; fuses_category: as ranking.Ranker's (default), or against it.
        """
        query = Query(photos=None if vector is None else vector[None])
        title, _, description = (text or "").partition("\n")
        text = listings.text(title, description).strip()
        by_text = paths = None
        if search_words(text):  # blanks and punctuation are no evidence
            query.words = text
            encoded, probable = models.read([text])
            if encoded.any():
                query.text, by_text = encoded[0], probable
                paths = models.path_probabilities(encoded)[0]
        if by_text is not None or probabilities is not None:
            fuses = self.ranker.fuses_category if fuses_category is None else fuses_category
            by_photo = None if probabilities is None or (by_text is not None and not fuses) else probabilities[None]
            query.category = self.tree.predicted(models.fuse(by_photo, by_text)[0], paths)
        return query

    def query_of(self, listing_row: int) -> Query:
        """A query for listings like one of the catalogue's own."""
        vector = np.asarray(self.text_index.vectors[listing_row])
        rows = self.catalogue.photos_of(listing_row)
        levels = self.tree.own_levels(listing_row)
        price = float(self.catalogue.columns["price"][listing_row])
        return Query(
            photos=self.photo_index.vectors[rows] if len(rows) else None,
            text=vector if vector.any() else None,
            category=levels if levels.any() else None,
            price=price if price > 0 else None,
            place=self.place_of(listing_row),
            excluded_row=listing_row,
        )

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
        step: Step = contextlib.nullcontext,
    ) -> list[dict]:
        """Listings that the evidence speaks for most, best first, from place `offset` on, at most k, none below min_score:
        fields for a client, the score and its parts. step: entered around the "search" for candidates and their "rank"."""
        return self._ranked_results(query, k, self.catalogue.allowed(filters), filters, offset, min_score, step)

    def search(
        self,
        query: Query,
        k: int,
        filters: Filters = Filters(),  # noqa: B008
        offset: int = 0,
        min_score: float = 0.0,
        with_counts: bool = False,
        step: Step = contextlib.nullcontext,
    ) -> Found:
        """recommend() by a person's words, and the whole result, in which folded listings and those below min_score count too."""
        allowed = self.catalogue.allowed(filters)
        results = self._ranked_results(query, k, allowed, filters, offset, min_score, step)
        # Here is decided what belongs to a ranked result. By meaning every listing is more or less alike, so that all that pass
        # the filters come after those that hold the words; where there is no meaning and none holds the words, none comes.
        any_found = query.text is not None or bool(query.words and len(self.catalogue.match_words(query.words, 1, filters)[0]))
        passing = self.catalogue.n_products if allowed is None else int(np.count_nonzero(allowed))
        counts = self.catalogue.counts(None if any_found else "", filters) if with_counts else None
        return Found.among(passing if any_found else 0, results, counts)

    def browse(
        self,
        text: str | None,
        k: int,
        filters: Filters = Filters(),  # noqa: B008
        offset: int = 0,
        sort: Sort = "newest",
        with_counts: bool = False,
    ) -> Found:
        """The listings that pass the filters and, where a text is given, hold any of its words, sorted, none folded."""
        rows, total = self.catalogue.search(text, filters, sort, k, offset)
        photos = [None if photo < 0 else photo for photo in self._best_photos(Query(), rows)[0].tolist()]
        hits = [Hit(row, photo, None, {}, 0) for row, photo in zip(rows.tolist(), photos, strict=True)]
        counts = self.catalogue.counts(text, filters) if with_counts else None
        return Found.among(total, self._results(hits, text), counts)

    def _ranked_results(
        self, query: Query, k: int, allowed: np.ndarray | None, filters: Filters, offset: int, min_score: float, step: Step
    ) -> list[dict]:
        hits = self._hits(query, offset, offset + k, allowed, filters, step=step)
        return self._results([hit for hit in hits if round(hit.score, 6) >= min_score], query.words)

    def ranked(self, query: Query, k: int, excluded: np.ndarray, kinds: Collection[str] = KINDS) -> np.ndarray:
        """Rows of the k listings that recommend() would give were the `excluded` rows not there, by the given evidence only."""
        allowed = np.ones(self.catalogue.n_products, bool)
        allowed[excluded] = False
        return np.array([hit.row for hit in self._hits(query, 0, k, allowed, kinds=kinds)], int)

    def _hits(
        self,
        query: Query,
        start: int,
        stop: int,
        allowed: np.ndarray | None,
        filters: Filters | None = None,
        kinds: Collection[str] = KINDS,
        step: Step = contextlib.nullcontext,
    ) -> list[Hit]:
        """The hits from place `start` on, before `stop`, duplicates folded; one has its place whatever the two are."""
        groups = self.catalogue.columns["duplicates"]
        hits: list[Hit] = []
        seen = np.empty(0, groups.dtype)
        window = WINDOW
        while True:
            with step("search"):
                rows, matched = self._window(query, window, allowed, filters)
            if not len(rows):
                return hits
            with step("rank"):
                evidence, best_photos = self.evidence(query, rows, matched)
                order, scores, parts = self.ranker.rank({kind: values for kind, values in evidence.items() if kind in kinds})
            ranked = groups[rows[order]]
            first = np.sort(np.unique(ranked, return_index=True)[1])  # of each group, by score
            fresh = first[~np.isin(ranked[first], seen)][: window - len(seen)]
            for i in order[fresh][max(start - len(seen), 0) : max(stop - len(seen), 0)]:
                own_parts = {kind: float(values[i]) for kind, values in parts.items()}
                photo = None if best_photos[i] < 0 else int(best_photos[i])
                folded = self._folded(query, rows[i], allowed)
                hits.append(Hit(int(rows[i]), photo, float(scores[i]), own_parts, folded))
            seen = np.concatenate([seen, ranked[fresh]])
            if len(seen) >= stop or len(rows) < window:
                return hits
            window *= 10

    def _window(
        self, query: Query, window: int, allowed: np.ndarray | None, filters: Filters | None
    ) -> tuple[np.ndarray, Matched]:
        """candidates() to rank for the first `window` results; fewer only where no more are there."""
        rows, matched = self.candidates(query, allowed, CANDIDATES * window, filters)
        if len(rows) >= window:
            return rows, matched
        if not len(rows) and query.photos is None and query.text is None:  # words that no listing holds
            return rows, matched
        # What passes the filters without any evidence, such as listings without a photo, comes last.
        others = np.ones(self.catalogue.n_products, bool) if allowed is None else allowed.copy()
        others[rows] = False
        if query.excluded_row is not None:
            others[query.excluded_row] = False
        return np.concatenate([rows, np.flatnonzero(others)[: window - len(rows)]]), matched

    def _folded(self, query: Query, row: int, allowed: np.ndarray | None) -> int:
        """How many other listings of the same photo or text are folded into a hit."""
        copies = [copy for copy in self.catalogue.duplicates_of(row).tolist() if copy != query.excluded_row]
        return (len(copies) if allowed is None else int(allowed[copies].sum())) - 1

    def candidates(
        self,
        query: Query,
        allowed: np.ndarray | None,
        depth: int = CANDIDATES * WINDOW,
        filters: Filters | None = None,
    ) -> tuple[np.ndarray, Matched]:
        """Rows of the listings that any evidence finds, ascending, and those that the words found, with their scores; `depth` of
        each kind, at first as many as an answer is ranked from.

        allowed: (P,) bool, what may be found; filters: what it comes from, where it does, for the words' own index.
        """
        matched: Matched = (np.empty(0, np.int64), np.empty(0, np.float32))
        if allowed is not None and not allowed.any():
            return matched[0], matched
        depth += query.excluded_row is not None
        found: list[np.ndarray] = []
        if query.photos is not None and self.catalogue.n_photos:
            listing_of_photo = self.catalogue.listing_of_photo
            allowed_photos = None if allowed is None else allowed[listing_of_photo]
            for vector in query.photos:
                found.append(self.photo_index.nearest_groups(vector, depth, listing_of_photo, allowed_photos))
        if query.text is not None:
            found.append(self.text_index.nearest(query.text, depth, allowed)[0])
        if query.words:
            matched = self.catalogue.match_words(query.words, depth, filters, allowed)
            found.append(matched[0])
        rows = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        # Not by `allowed`: a search among all is faster than one with a filter.
        return (rows if query.excluded_row is None else rows[rows != query.excluded_row]), matched

    def evidence(
        self, query: Query, rows: np.ndarray, matched: Matched | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What speaks for each listing of `rows`: kind -> (N,) in [0, 1], and (N,) the row of its photo nearest to the query's,
        or of its first one; -1 where it has none.

        photo: its most alike photo; text: dense text similarity; words: BM25 as a share of the best candidate's; category: how
        probable the levels of its path are; price: the smaller price as a share of the larger; place: 1 the same town, 0.5 the
        same county. NaN where a listing has no photo, path or price.
        """
        evidence: dict[str, np.ndarray] = {}
        best_photos, cosines = self._best_photos(query, rows)
        if query.photos is not None:
            evidence["photo"] = self.ranker.similarity("photo", cosines)
        if query.text is not None:
            evidence["text"] = self.ranker.similarity("text", self.text_index.vectors[rows] @ query.text)
        if query.words:
            scores = self.catalogue.score_words(query.words, rows, matched)
            evidence["words"] = scores / max(scores.max(), 1e-9)
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
            alike = (self.photo_index.vectors[photo_rows] @ query.photos.T).max(axis=1)
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

    def _results(self, hits: list[Hit], text: str | None) -> list[dict]:
        """The fields of each hit for a client; a text's words are marked in them."""
        photo_rows = [hit.photo_row for hit in hits if hit.photo_row is not None]
        image_id_of = dict(zip(photo_rows, self.catalogue.image_ids(photo_rows), strict=True)) | {None: None}
        fields = RESULT_FIELDS if text is None else (*RESULT_FIELDS, "description")
        products = self.catalogue.products([hit.row for hit in hits], fields)
        highlighter = None if text is None else self.catalogue.highlighter(text)
        results = []
        for hit, product in zip(hits, products, strict=True):
            image_id = image_id_of[hit.photo_row]
            snippet = highlighter and asdict(highlighter.snippet(product.pop("description")))
            results.append(
                product
                | {
                    "name_marks": highlighter.marks(product["name"]) if highlighter else [],
                    "snippet": snippet,
                    "image_id": image_id,
                    "photo_url": image_id and f"/images/{image_id}.jpg",
                    "duplicates": hit.duplicates,
                    "score": None if hit.score is None else round(hit.score, 6),
                    "parts": {kind: round(value, 6) for kind, value in hit.parts.items()},
                }
            )
        return results
