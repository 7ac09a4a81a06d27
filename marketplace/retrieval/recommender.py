"""One generation of the index, opened: queries of photos, words and listings in, ranked and explained listings out."""

import contextlib
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marketplace.cleaning import listings, photos
from marketplace.files import reading, stages
from marketplace.files.stages import StageError
from marketplace.models import photo_model, price_model, text_model
from marketplace.retrieval.catalogue import Catalogue, Filters, search_words
from marketplace.retrieval.categories import CategoryTree
from marketplace.retrieval.ranking import KINDS, Ranker
from marketplace.retrieval.vectors import VectorIndex

WINDOW = 100  # results are ranked this many at a time, then ten times as many: a later page never changes an earlier one
RESULT_FIELDS = ("product_id", "name", "category", "price", "price_plausible", "town", "county")
PLACES = ("town", "county")
CANDIDATES = 2  # of each kind of evidence, for each result of the window
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
    listings with the same photo or text it stands for."""

    row: int
    photo_row: int | None
    score: float
    parts: dict[str, float]
    duplicates: int


class Recommender:
    """The models, vectors, catalogue and ranker of one generation; safe to use from many threads."""

    def __init__(self, generation_dir: Path, runtime: str = "auto", device: str | None = None):
        """Raises StageError when files are missing or do not belong together."""
        self.report = reading.read_json(generation_dir / "report.json")
        recorded = self.report["files"]
        if stages.digests(generation_dir, *recorded) != recorded:
            raise StageError(
                f"the files in {generation_dir} are not those it was published with: run python build_index.py --full"
            )
        self._open(generation_dir)
        self.photo_model = photo_model.PhotoModel(generation_dir, runtime, device)
        # Vectors of one's own (build_index.py --embeddings) answer for listings; no photo can be compared with them.
        self.takes_photos = not self.report["own_embeddings"]
        pairs = [
            ("photos", self.photo_index.rows, self.catalogue.n_photos),
            ("listings", self.text_index.rows, self.catalogue.n_products),
            ("classes", len(self.photo_model.description.classes), self.table_models.n_classes),
        ]
        if self.takes_photos:
            pairs.append(("dimensions", self.dimension, self.photo_model.description.dimension))
        for what, left, right in pairs:
            if left != right:
                raise StageError(
                    f"the files in {generation_dir} do not belong together ({left} {what} against {right}): "
                    "run python build_index.py again"
                )

    @classmethod
    def unpublished(cls, folder: Path) -> "Recommender":
        """A generation that is still being built, without its photo model: for queries whose vectors are known."""
        recommender = cls.__new__(cls)
        recommender._open(folder)
        return recommender

    def _open(self, folder: Path) -> None:
        self.generation = folder.name
        self.catalogue = Catalogue(folder)
        self.photo_index = VectorIndex.open(folder / "index.faiss", folder / "vectors.npy", self.catalogue.live_photos)
        self.text_index = VectorIndex.open(folder / "text.faiss", folder / "text_vectors.npy", self.catalogue.live)
        self.dimension = self.photo_index.index.d
        self.ranker = Ranker.load(folder / "ranker.json")
        self.table_models = text_model.TableModels.load(folder)
        self.price_model = price_model.PriceModel.load(folder, self.table_models)
        self.classes = photo_model.Description.load(folder).classes
        columns, names = self.catalogue.columns, self.catalogue.names
        self.tree = CategoryTree(columns["category"], names["category"], self.classes, self.table_models.paths)

    def clean(self, data: bytes) -> bytes:
        """A raw photo as clean_images.py would store it; photos.PhotoRejected when it is none."""
        return photos.clean(data, self.photo_model.settings).jpeg

    def embed(self, jpeg: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(D,) unit vector and (C,) category probabilities of one cleaned photo."""
        return self.photo_model.run_one(self.photo_model.input(jpeg))

    def query(
        self,
        vector: np.ndarray | None = None,
        text: str | None = None,
        probabilities: np.ndarray | None = None,
        fuses_category: bool | None = None,
    ) -> Query:
        """A query from a photo's vector and its (C,) category probabilities, a person's words, or all of them.

        fuses_category: as ranking.Ranker's (default), or against it.
        """
        query = Query(photos=None if vector is None else vector[None])
        text = listings.text(*(text or "").partition("\n")[::2]).strip()
        by_text = paths = None
        if search_words(text):  # blanks and punctuation are no evidence
            query.words = text
            encoded, probable = self.table_models.read([text])
            if encoded.any():
                query.text, by_text = encoded[0], probable
                paths = self.table_models.path_probabilities(encoded)[0]
        if by_text is not None or probabilities is not None:
            fuses = self.ranker.fuses_category if fuses_category is None else fuses_category
            by_photo = None if probabilities is None or (by_text is not None and not fuses) else probabilities[None]
            query.category = self.tree.predicted(self.table_models.fuse(by_photo, by_text)[0], paths)
        return query

    def query_of(self, product_row: int) -> Query:
        """A query for listings like one of the catalogue's own."""
        vector = np.asarray(self.text_index.vectors[product_row])
        rows = self.catalogue.photos_of(product_row)
        known = self.tree.known(product_row)
        price = float(self.catalogue.columns["price"][product_row])
        return Query(
            photos=self.photo_index.vectors[rows] if len(rows) else None,
            text=vector if vector.any() else None,
            category=known if known.any() else None,
            price=price if price > 0 else None,
            place=self.place_of(product_row),
            excluded_row=product_row,
        )

    def place_of(self, product_row: int) -> tuple[int, int] | None:
        """Codes of town and county; None where neither is known."""
        codes = tuple(int(self.catalogue.columns[kind][product_row]) for kind in PLACES)
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
        hits = self._hits(query, offset, offset + k, self.catalogue.allowed(filters), step=step)
        return self._results([hit for hit in hits if round(hit.score, 6) >= min_score])

    def ranked(self, query: Query, k: int, excluded: np.ndarray, kinds: Collection[str] = KINDS) -> np.ndarray:
        """Rows of the k listings that recommend() would give were the `excluded` rows not there, by the given evidence only."""
        allowed = self.catalogue.live.copy()
        allowed[excluded] = False
        return np.array([hit.row for hit in self._hits(query, 0, k, allowed, kinds)], int)

    def _hits(
        self,
        query: Query,
        start: int,
        stop: int,
        allowed: np.ndarray | None,
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
                rows = self.candidates(query, CANDIDATES * window, allowed)
            if not len(rows) and query.photos is None and query.text is None:  # words that no listing holds
                return hits
            if len(rows) < window:
                # What passes the filters without any evidence, such as listings without a photo, comes last.
                others = (self.catalogue.live if allowed is None else allowed).copy()
                others[rows] = False
                if query.excluded_row is not None:
                    others[query.excluded_row] = False
                rows = np.concatenate([rows, np.flatnonzero(others)[: window - len(rows)]])
                if not len(rows):
                    return hits
            with step("rank"):
                evidence, best_photos = self.evidence(query, rows)
                order, scores, parts = self.ranker.rank({kind: values for kind, values in evidence.items() if kind in kinds})
            ranked = groups[rows[order]]
            first = np.sort(np.unique(ranked, return_index=True)[1])  # of each group, by score
            fresh = first[~np.isin(ranked[first], seen)][: window - len(seen)]
            for i in order[fresh][max(start - len(seen), 0) : max(stop - len(seen), 0)]:
                copies = [copy for copy in self.catalogue.duplicates_of(rows[i]).tolist() if copy != query.excluded_row]
                folded = len(copies) if allowed is None else int(allowed[copies].sum())
                own_parts = {kind: float(values[i]) for kind, values in parts.items()}
                photo = None if best_photos[i] < 0 else int(best_photos[i])
                hits.append(Hit(int(rows[i]), photo, float(scores[i]), own_parts, folded - 1))
            seen = np.concatenate([seen, ranked[fresh]])
            if len(seen) >= stop or len(rows) < window:
                return hits
            window *= 10

    def candidates(self, query: Query, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows of the products that any evidence finds, ascending."""
        if allowed is not None and not allowed.any():
            return np.empty(0, np.int64)
        depth += query.excluded_row is not None
        found: list[np.ndarray] = []
        if query.photos is not None and self.catalogue.n_photos:
            product_of_photo = self.catalogue.product_of_photo
            allowed_photos = None if allowed is None else allowed[product_of_photo]
            for vector in query.photos:
                found.append(self.photo_index.nearest_groups(vector, depth, product_of_photo, allowed_photos))
        if query.text is not None:
            found.append(self.text_index.nearest(query.text, depth, allowed)[0])
        if query.words:
            found.append(self.catalogue.match_words(query.words, depth, allowed))
        rows = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        # Not by `allowed`: a search among all is faster than one with a filter.
        return rows if query.excluded_row is None else rows[rows != query.excluded_row]

    def evidence(self, query: Query, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What speaks for each product of `rows`: kind -> (N,) in [0, 1], and (N,) the row of its photo nearest to the query's,
        or of its first one; -1 where it has none.

        photo: its most alike photo; text: dense text similarity; words: BM25 as a share of the best candidate's; category: how
        probable the levels of its path are; price: the smaller price as a share of the larger; place: 1 the same town, 0.5 the
        same county. NaN where a product has no photo, path or price.
        """
        columns = self.catalogue.columns
        evidence: dict[str, np.ndarray] = {}
        photo_rows, counts = self.catalogue.photos_of_each(rows)
        alike = np.zeros(len(photo_rows), np.float32)
        if query.photos is not None:
            alike = (self.photo_index.vectors[photo_rows] @ query.photos.T).max(axis=1)
        best_first = np.lexsort((-alike, np.repeat(np.arange(len(rows)), counts)))
        best = best_first[(counts.cumsum() - counts)[counts > 0]]
        best_photos, cosines = np.full(len(rows), -1), np.full(len(rows), np.nan, np.float32)
        best_photos[counts > 0], cosines[counts > 0] = photo_rows[best], alike[best]
        if query.photos is not None:
            evidence["photo"] = self.ranker.similarity("photo", cosines)
        if query.text is not None:
            evidence["text"] = self.ranker.similarity("text", self.text_index.vectors[rows] @ query.text)
        if query.words:
            scores = self.catalogue.score_words(query.words, rows)
            evidence["words"] = scores / max(scores.max(), 1e-9)
        if query.category is not None:
            evidence["category"] = self.tree.agreement(query.category, rows)
        if query.price is not None:
            prices = np.where(columns["price"][rows] > 0, columns["price"][rows], np.nan)
            evidence["price"] = np.minimum(prices, query.price) / np.maximum(prices, query.price)
        if query.place is not None:
            town, county = (columns[kind][rows] == code for kind, code in zip(PLACES, query.place, strict=True))
            by_town, by_county = map(bool, self._place_names(query.place))  # no name in common is nothing in common
            evidence["place"] = np.where(town & county & by_town, 1.0, np.where(county & by_county, 0.5, 0.0))
        return evidence, best_photos

    def _results(self, hits: list[Hit]) -> list[dict]:
        """The fields of each hit for a client."""
        photo_rows = [hit.photo_row for hit in hits if hit.photo_row is not None]
        image_id_of = dict(zip(photo_rows, self.catalogue.image_ids(photo_rows), strict=True)) | {None: None}
        products = self.catalogue.products([hit.row for hit in hits], RESULT_FIELDS)
        results = []
        for hit, product in zip(hits, products, strict=True):
            image_id = image_id_of[hit.photo_row]
            results.append(
                product
                | {
                    "image_id": image_id,
                    "photo_url": image_id and f"/images/{image_id}.jpg",
                    "duplicates": hit.duplicates,
                    "score": round(hit.score, 6),
                    "parts": {kind: round(value, 6) for kind, value in hit.parts.items()},
                }
            )
        return results

    def predict(self, vector: np.ndarray | None, probabilities: np.ndarray | None, text: str | None) -> dict:
        """Category probabilities, best first, and a price range, from a photo's vector and (C,) probabilities, words, or both.

        Raises ValueError when there is neither.
        """
        text = listings.text(text or "", "").strip()
        if not text and probabilities is None:
            raise ValueError("neither a photo nor words")
        by_text = self.table_models.category_probabilities([text]) if text else None
        fused = self.table_models.fuse(None if probabilities is None else probabilities[None], by_text)[0]
        return {
            "categories": [
                {"category": self.classes[label], "probability": round(float(fused[label]), 6)} for label in np.argsort(-fused)
            ],
            "price": self.price_model.price_range(text, vector=vector) | {"currency": "GBP"},
        }
