"""Models of the table: text encoder, category from words, price; fitted, saved, loaded and run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import scipy.sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import Normalizer

from marketplace import storage
from marketplace.errors import StageError

DESCRIPTION, WEIGHTS = "table_models.json", "table_models.safetensors"
MAX_WORDS, MAX_CHARACTERS = 20_000, 30_000  # vocabulary: bounds the encoder's file to about 50 MB
TEXT_DIMENSION = 256
RANGE_QUANTILES = (0.1, 0.5, 0.9)


@dataclass
class TableModels:
    """encoder: text -> tfidf, svd, unit; category: tfidf -> label; price: tfidf and category -> log10 pounds.

    residuals: the 10%, 50% and 90% quantiles of log10(price / predicted) on listings that no model was fitted on.
    """

    encoder: Pipeline
    category: LogisticRegression
    price: Ridge
    residuals: tuple[float, float, float]
    n_classes: int

    def tfidf(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        return self.encoder["tfidf"].transform(texts).tocsr()

    def encode(self, texts: list[str]) -> np.ndarray:
        """(N, T) float32 unit rows; a text without a known word gives a row of zeros."""
        return self.encoder.transform(texts).astype(np.float32)

    def category_probabilities(self, texts: list[str]) -> np.ndarray:
        """(N, C) rows that sum to 1; classes that training never saw get 0."""
        probabilities = np.zeros((len(texts), self.n_classes), np.float32)
        probabilities[:, self.category.classes_] = self.category.predict_proba(self.tfidf(texts))
        return probabilities

    def log_price(self, texts: list[str], categories: np.ndarray) -> np.ndarray:
        """(N,) log10 pounds, from texts and (N, C) category probabilities (one-hot where the category is known)."""
        return self.price.predict(_price_features(self.tfidf(texts), categories))

    def price_range(self, text: str, categories: np.ndarray) -> dict[str, float]:
        """Pounds: the median guess, and the bounds between which 80% of prices lie."""
        middle = float(self.log_price([text], categories[None])[0])
        low, median, high = (round(10 ** (middle + residual), 2) for residual in self.residuals)
        return {"low": low, "median": median, "high": high}

    def save(self, model_dir: Path) -> None:
        """Write the arrays as safetensors and the vocabularies as JSON: equal models give equal bytes."""
        arrays = {
            "svd": self.encoder["svd"].components_,
            "category.coef": self.category.coef_,
            "category.intercept": self.category.intercept_,
            "category.classes": self.category.classes_,
            "price.coef": self.price.coef_,
            "price.intercept": np.atleast_1d(self.price.intercept_),
        }
        vocabularies = {}
        for name, vectoriser in self.encoder["tfidf"].transformer_list:
            arrays[f"{name}.idf"] = vectoriser.idf_
            vocabularies[name] = vectoriser.get_feature_names_out().tolist()
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        storage.write_bytes(model_dir / WEIGHTS, safetensors.numpy.save(arrays))
        rest = {"residuals": self.residuals, "n_classes": self.n_classes, "vocabularies": vocabularies}
        storage.write_json(model_dir / DESCRIPTION, rest, indent=None)

    @classmethod
    def load(cls, model_dir: Path) -> "TableModels":
        rest = storage.read_json(model_dir / DESCRIPTION)
        try:
            arrays = safetensors.numpy.load_file(model_dir / WEIGHTS)
        except (FileNotFoundError, safetensors.SafetensorError):
            raise StageError(f"{model_dir / WEIGHTS} is missing or damaged: run python train.py again") from None
        tfidf = _tfidf(rest["vocabularies"])
        for name, vectoriser in tfidf.transformer_list:
            vectoriser.idf_ = arrays[f"{name}.idf"]
        svd = TruncatedSVD(n_components=len(arrays["svd"]))
        svd.components_ = arrays["svd"]
        category, price = LogisticRegression(), Ridge()
        category.coef_, category.intercept_ = arrays["category.coef"], arrays["category.intercept"]
        category.classes_ = arrays["category.classes"].astype(int)
        price.coef_, price.intercept_ = arrays["price.coef"], float(arrays["price.intercept"][0])
        return cls(_encoder(tfidf, svd), category, price, tuple(rest["residuals"]), rest["n_classes"])


def fit(
    texts: list[str], labels: np.ndarray, prices: np.ndarray, plausible: np.ndarray, n_classes: int, seed: int
) -> TableModels:
    """Fit on the training listings only; residuals are left at 0 until calibrate().

    texts: N; labels: (N,) int; prices: (N,) pounds; plausible: (N,) bool, whether the price tells anything.
    """
    tfidf = _tfidf()
    try:
        matrix = tfidf.fit_transform(texts).tocsr()
    except ValueError:
        raise StageError("the training listings hold no words: check product_name and product_description") from None
    if len(np.unique(labels)) < 2:
        raise StageError("the training listings have one category only: give listings of at least two, or --category-depth 2")
    with np.errstate(divide="ignore", invalid="ignore"):  # its share of explained variance, unused, where all texts are the same
        svd = TruncatedSVD(n_components=min(TEXT_DIMENSION, min(matrix.shape) - 1), random_state=seed).fit(matrix)
    # C and alpha are round numbers for rows of unit length, not tuned.
    category = LogisticRegression(C=20, max_iter=200).fit(matrix, labels)
    if not plausible.any():
        raise StageError("no training listing has a plausible price: check the price column of Products.csv")
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]
    price = Ridge(alpha=1.0, solver="sparse_cg", random_state=seed).fit(
        _price_features(matrix[plausible], one_hot[plausible]), np.log10(prices[plausible])
    )
    return TableModels(_encoder(tfidf, svd), category, price, (0.0, 0.0, 0.0), n_classes)


def calibrate(models: TableModels, texts: list[str], labels: np.ndarray, prices: np.ndarray, plausible: np.ndarray) -> None:
    """Set the width of the price range from listings that fit() did not see (split conformal, Lei et al. 2018)."""
    if plausible.sum() < 2:
        return
    texts = [text for text, usable in zip(texts, plausible, strict=True) if usable]
    one_hot = np.eye(models.n_classes, dtype=np.float32)[labels[plausible]]
    residuals = np.log10(prices[plausible]) - models.log_price(texts, one_hot)
    models.residuals = tuple(float(value) for value in np.quantile(residuals, RANGE_QUANTILES))


def _tfidf(vocabularies: dict[str, list[str]] | None = None) -> FeatureUnion:
    """Words and word pairs, and characters within words; with fixed vocabularies, or ones to be fitted."""
    kinds = {
        "words": {"analyzer": "word", "ngram_range": (1, 2), "max_features": MAX_WORDS, "token_pattern": r"(?u)\b\w+\b"},
        "characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": MAX_CHARACTERS},
    }
    common = {"sublinear_tf": True, "dtype": np.float32, "strip_accents": "unicode"}
    return FeatureUnion(
        [(name, TfidfVectorizer(**kind, **common, vocabulary=(vocabularies or {}).get(name))) for name, kind in kinds.items()]
    )


def _encoder(tfidf: FeatureUnion, svd: TruncatedSVD) -> Pipeline:
    return Pipeline([("tfidf", tfidf), ("svd", svd), ("unit", Normalizer(copy=False))])


def _price_features(tfidf: scipy.sparse.csr_matrix, categories: np.ndarray) -> scipy.sparse.csr_matrix:
    return scipy.sparse.hstack([tfidf, scipy.sparse.csr_matrix(categories, dtype=np.float32)], format="csr")
