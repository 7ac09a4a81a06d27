"""An opened index with its models: cleaned photos and words in, ranked listings, categories and prices out."""

from pathlib import Path

import numpy as np

from marketplace.cleaning import listings
from marketplace.files import reading, stages
from marketplace.files.stages import StageError
from marketplace.models import photo_model, price_model, text_model
from marketplace.retrieval.open_index import OpenIndex, Query


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

    def __init__(self, generation_dir: Path, runtime: str = "auto", device: str | None = None):
        """Raises StageError when files are missing or do not belong together."""
        self.report = check_files(generation_dir)
        super().__init__(generation_dir)
        self.table_models = text_model.TableModels.load(generation_dir, self.text_encoder)
        self.price_model = price_model.PriceModel.load(generation_dir, self.table_models)
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
        """Category probabilities, best first, and a price range, from a photo's vector and (C,) probabilities, words, or both.

        Raises ValueError when there is neither.
        """
        text = listings.text(text or "", "").strip()
        if not text and probabilities is None:
            raise ValueError("neither a photo nor words")
        meanings = self.table_models.meanings([text])
        by_text = self.table_models.category_probabilities([text], meanings) if text else None
        fused = self.table_models.fuse(None if probabilities is None else probabilities[None], by_text)[0]
        return {
            "categories": [
                {"category": self.classes[label], "probability": round(float(fused[label]), 6)} for label in np.argsort(-fused)
            ],
            "price": self.price_model.price_range(text, vector=vector, meaning=meanings[0])
            | {"currency": self.catalogue.currency},
        }
