"""An opened index with its models: cleaned photos and words in, ranked listings, categories and prices out."""

from pathlib import Path

import numpy as np

from marketplace.cleaning import listings
from marketplace.files import reading, stages
from marketplace.files.stages import StageError
from marketplace.models import photo_model, price_model, text_model
from marketplace.retrieval import answers, milvus
from marketplace.retrieval.moderation import Moderation
from marketplace.retrieval.open_index import OpenIndex, Query

PATHS = 5  # told of a new listing
COMPARED, COMPARABLES = 24, 8  # listings looked at, and told, beside a new listing's price range
SAME_SELLER, MOST_DUPLICATES = 12, 12  # listings told beside one


def check_files(generation_dir: Path) -> dict:
    """The report of a generation; StageError where it is of another version, or its files are not those it was published with."""
    report = reading.read_json(generation_dir / "report.json")
    if report.get("schema") != stages.STAGES["index"].schema:
        raise StageError(f"{generation_dir} was built by another version of this program: run python build_index.py")
    recorded = report["files"]
    if stages.digests(generation_dir, *recorded) != recorded:
        raise StageError(f"the files in {generation_dir} are not those it was published with: run python build_index.py --full")
    return report


class Recommender(OpenIndex):
    """A published generation and its photo, table and price models; safe to use from many threads."""

    def __init__(
        self,
        generation_dir: Path,
        runtime: str = "auto",
        device: str | None = None,
        server: milvus.Server | None = None,
    ):
        """runtime, device: as PhotoModel takes them; server: as OpenIndex does. Raises as that."""
        self.report = check_files(generation_dir)
        super().__init__(generation_dir, server)
        self.table_models = text_model.TableModels.load(generation_dir, self.text_encoder)
        self.price_model = price_model.PriceModel.load(generation_dir, self.table_models)
        self.moderation = Moderation(generation_dir)
        self.photo_model = photo_model.PhotoModel(generation_dir, runtime, device)
        # Vectors of one's own (build_index.py --embeddings) answer for listings; no photo can be compared with them.
        self.takes_photos = not self.report["own_embeddings"]
        self._check_fit(generation_dir)

    def _check_fit(self, generation_dir: Path) -> None:
        """StageError where the index and the models are of different numbers of things."""
        pairs = [
            ("photos", self.photo_index.rows, self.catalogue.n_photos),
            ("listings", self.text_index.rows, self.catalogue.n_products),
            *(("listings", own.rows, self.catalogue.n_products) for own in self.typed_search.vector_indexes),
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

    def embed(self, jpeg: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(D,) unit vector and (C,) category probabilities of one cleaned photo."""
        return self.photo_model.run_one(self.photo_model.input(jpeg))

    def query(
        self,
        vectors: np.ndarray | None = None,
        text: str | None = None,
        probabilities: np.ndarray | None = None,
    ) -> Query:
        """query_by() this generation's own models."""
        return self.query_by(self.table_models, vectors, text, probabilities)

    def predict(self, vector: np.ndarray | None, probabilities: np.ndarray | None, text: str | None) -> dict:
        """Categories and paths, likeliest first, a price range, and priced listings like it, from a photo's vector and (C,)
        probabilities, words, or both.

        Raises ValueError when there is neither.
        """
        cleaned = listings.text(text or "", "").strip()
        if not cleaned and probabilities is None:
            raise ValueError("neither a photo nor words")
        models, meanings = self.table_models, self.table_models.meanings([cleaned])
        encoded, by_text = models.read([cleaned], meanings) if cleaned else (None, None)
        fused = models.fuse(None if probabilities is None else probabilities[None], by_text)[0]
        by_path = models.path_probabilities(encoded)[0] if cleaned else None
        levels, names = self.tree.predicted(fused, by_path), self.catalogue.names["category"]
        settled = self.tree.settled(levels)
        vectors = vector[None] if vector is not None and self.takes_photos else None
        return {
            "categories": [
                {"category": self.classes[label], "probability": round(float(fused[label]), 6)} for label in np.argsort(-fused)
            ],
            "category": None if settled is None else names[settled],
            "paths": [
                {"category": names[code], "probability": round(probability, 6)}
                for code, probability in self.tree.likeliest(levels, PATHS)
            ],
            "price": self.price_model.price_range(cleaned, vector=vector, meaning=meanings[0])
            | {"currency": self.catalogue.currency},
            "comparables": self._comparables(self.query(vectors, text, probabilities)),
        }

    def _comparables(self, query: Query) -> list[dict]:
        """Listings most like a new one whose price can be meant."""
        found = self.recommend(query, COMPARED) if query.kinds else []
        return [result for result in found if result["price_plausible"] and result["price"]][:COMPARABLES]

    def product(self, listing_row: int) -> dict:
        """A listing with what is told beside it: its price range, its duplicates, and more of the same seller."""
        catalogue = self.catalogue
        fields, photos = catalogue.product(listing_row), catalogue.photos(catalogue.photos_of(listing_row))
        levels = listings.category_levels(fields["category"])
        duplicates = catalogue.shown(catalogue.duplicates_of(listing_row))
        others = duplicates[duplicates != listing_row]
        same_seller, sold = catalogue.same_seller(listing_row, SAME_SELLER)
        price_range = self.price_range_of(listing_row, fields)
        return fields | {
            "currency": catalogue.currency,
            "photos": [photo._asdict() | {"photo_url": photo.square_url, "display_url": photo.display_url} for photo in photos],
            "breadcrumb": [
                {"name": level, "category": listings.CATEGORY_SEPARATOR.join(levels[: depth + 1])}
                for depth, level in enumerate(levels)
            ],
            "price_range": price_range | {"currency": catalogue.currency},
            "price_verdict": verdict_on(fields["price"], price_range),
            "duplicates": len(others),
            "duplicate_listings": answers.cards(catalogue, others[:MOST_DUPLICATES].tolist()),
            "same_seller": sold,
            "same_seller_listings": answers.cards(catalogue, same_seller),
        }

    def price_range_of(self, listing_row: int, fields: dict) -> dict:
        """What a listing could ask, as PriceModel.range_of() tells; fields: its name, description, category and county.

        Of a listing that the model learned from, by models that had not seen it.
        """
        if (unseen := self.catalogue.price_range(listing_row)) is not None:
            return self.price_model.range_of(*unseen)
        photos = self.catalogue.photos_of(listing_row)
        vector = self.photo_index.vectors_of(photos).mean(axis=0) if len(photos) and self.takes_photos else None
        meanings = self.typed_search.meanings
        meaning = None if meanings is None else meanings.vectors_of(np.array([listing_row]))[0]
        text = listings.text(fields["name"], fields["description"])
        return self.price_model.price_range(text, fields["category"], fields["county"], vector, meaning)


def verdict_on(price: float | None, price_range: dict) -> str | None:
    """Whether a price is within what listings like it ask; None where there is no price, or the range says little."""
    if not price or not price_range["is_informative"]:
        return None
    if price < price_range["low"]:
        return "low"
    return "high" if price > price_range["high"] else "likely"
