"""One generation of the index, opened: queries of photos, words and listings in, ranked and explained listings out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marketplace import listings, model, photos, storage, table_models
from marketplace.catalogue import Catalogue, Filters, search_words
from marketplace.errors import StageError
from marketplace.ranking import Ranker
from marketplace.search import VectorIndex

CANDIDATES = 100  # of each kind of evidence, and at least 5 for each result wanted


@dataclass
class Query:
    """Evidence to look for: any of photo vectors (n, D), a text vector (T,), and words."""

    photos: np.ndarray | None = None
    text: np.ndarray | None = None
    words: str | None = None
    excluded_row: int | None = None  # the listing that asks


class Recommender:
    """The models, vectors, catalogue and ranker of one generation; safe to use from many threads."""

    def __init__(self, generation_dir: Path, runtime: str = "auto", device: str | None = None):
        """Raises StageError when files are missing or do not belong together."""
        self.generation = generation_dir.name
        self.report = storage.read_json(generation_dir / "report.json")
        recorded = self.report["files"]
        if storage.digests(generation_dir, *recorded) != recorded:
            raise StageError(
                f"the files in {generation_dir} are not those it was published with: run python build_index.py again"
            )
        self.catalogue = Catalogue(generation_dir)
        self.photo_index = VectorIndex.open(generation_dir / "index.faiss", generation_dir / "vectors.npy")
        self.text_index = VectorIndex.open(generation_dir / "text.faiss", generation_dir / "text_vectors.npy")
        self.ranker = Ranker.load(generation_dir / "ranker.json")
        self.photo_model = model.PhotoModel(generation_dir, runtime, device)
        self.table_models = table_models.TableModels.load(generation_dir)
        self.dimension = self.photo_index.index.d
        # Vectors of one's own (build_index.py --embeddings) answer for listings; no photo can be compared with them.
        self.takes_photos = not self.report["own_embeddings"]
        pairs = [
            ("photos", self.photo_index.index.ntotal, self.catalogue.n_photos),
            ("listings", self.text_index.index.ntotal, self.catalogue.n_products),
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

    def clean(self, data: bytes) -> bytes:
        """A raw photo as clean_images.py would store it; photos.PhotoRejected when it is none."""
        return photos.clean(data, self.photo_model.settings).jpeg

    def embed(self, jpeg: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(D,) unit vector and (C,) category probabilities of one cleaned photo."""
        features, probabilities = self.photo_model.run(self.photo_model.input(jpeg)[None])
        return features[0], probabilities[0]

    def query(self, vector: np.ndarray | None = None, text: str | None = None) -> Query:
        """A query from a photo's vector, a person's words, or both."""
        query = Query(photos=None if vector is None else vector[None])
        text = listings.text(text or "", "").strip()
        if search_words(text):  # blanks and punctuation are no evidence
            query.words = text
            encoded = self.table_models.encode([text])[0]
            query.text = encoded if encoded.any() else None
        return query

    def query_of(self, product_row: int) -> Query:
        """A query for listings like one of the catalogue's own."""
        vector = np.asarray(self.text_index.vectors[product_row])
        rows = self.catalogue.photos_of(product_row)
        return Query(
            photos=self.photo_index.vectors[rows] if len(rows) else None,
            text=vector if vector.any() else None,
            excluded_row=product_row,
        )

    def recommend(self, query: Query, k: int, filters: Filters = Filters()) -> list[dict]:  # noqa: B008
        """The k listings that the evidence speaks for most, best first: fields for a client, the score and its parts."""
        allowed = self.catalogue.allowed(filters)
        if query.excluded_row is not None:
            allowed = np.ones(self.catalogue.n_products, bool) if allowed is None else allowed.copy()
            allowed[query.excluded_row] = False
        if allowed is not None and not allowed.any():
            return []
        rows = self._candidates(query, max(CANDIDATES, 5 * k), allowed)
        if not len(rows):
            return []
        if len(rows) < k:  # what passes the filters without any evidence, such as listings without a photo, comes last
            passing = np.arange(self.catalogue.n_products) if allowed is None else np.flatnonzero(allowed)
            rows = np.concatenate([rows, np.setdiff1d(passing, rows)[: k - len(rows)]])
        evidence, best_photos = self.evidence(query, rows)
        order, scores, parts = self.ranker.rank(evidence)
        return [
            self._result(rows[i], best_photos[i], scores[i], {kind: values[i] for kind, values in parts.items()})
            for i in order[:k]
        ]

    def _candidates(self, query: Query, depth: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows of the products that any evidence finds, ascending."""
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
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def evidence(self, query: Query, rows: np.ndarray) -> tuple[dict[str, np.ndarray], list[int | None]]:
        """What speaks for each product of `rows`: kind -> (N,) in [0, 1], and the row of its photo nearest to the query's.

        photo: its most alike photo; text: dense text similarity; words: BM25 as a share of the best candidate's.
        """
        evidence: dict[str, np.ndarray] = {}
        photos_of = [self.catalogue.photos_of(row) for row in rows]
        best_photos: list[int | None] = [int(of_product[0]) if len(of_product) else None for of_product in photos_of]
        if query.photos is not None:
            cosines = np.zeros(len(rows), np.float32)
            for position, of_product in enumerate(photos_of):
                if len(of_product):
                    alike = (self.photo_index.vectors[of_product] @ query.photos.T).max(axis=1)
                    best_photos[position] = int(of_product[alike.argmax()])
                    cosines[position] = alike.max()
            evidence["photo"] = self.ranker.similarity("photo", cosines)
        if query.text is not None:
            evidence["text"] = self.ranker.similarity("text", self.text_index.vectors[rows] @ query.text)
        if query.words:
            scores = self.catalogue.score_words(query.words, rows)
            evidence["words"] = scores / max(scores.max(), 1e-9)
        return evidence, best_photos

    def _result(self, row: int, photo_row: int | None, score: float, parts: dict[str, float]) -> dict:
        product = self.catalogue.product(row)
        image_id = None if photo_row is None else self.catalogue.image_ids(np.array([photo_row]))[0]
        return {
            **{key: product[key] for key in ("product_id", "name", "category", "price", "price_plausible", "town", "county")},
            "image_id": image_id,
            "photo_url": image_id and f"/images/{image_id}.jpg",
            "score": round(float(score), 6),
            "parts": {kind: round(float(value), 6) for kind, value in parts.items()},
        }

    def predict(self, probabilities: np.ndarray | None, text: str | None) -> dict:
        """Category probabilities, best first, and a price range, from a photo's (C,) probabilities, words, or both.

        Raises ValueError when there is neither.
        """
        kinds = [] if probabilities is None else [probabilities]
        text = listings.text(text or "", "").strip()
        if not text and not kinds:
            raise ValueError("neither a photo nor words")
        if text:
            kinds.append(self.table_models.category_probabilities([text])[0])
        # The product of experts (Hinton 2002): a class that either of them rules out stays out.
        fused = np.exp(np.mean(np.log(np.clip(kinds, 1e-6, 1)), axis=0))
        fused /= fused.sum()
        classes = self.photo_model.description.classes
        return {
            "categories": [
                {"category": classes[label], "probability": round(float(fused[label]), 6)} for label in np.argsort(-fused)
            ],
            "price": self.table_models.price_range(text, fused) | {"currency": "GBP"},
        }
