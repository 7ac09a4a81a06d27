"""Models of the table's words: text encoder, category, path, and the fusion with the photo's category; fitted, saved, run."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy
import scipy.sparse
from scipy.special import log_softmax, softmax

from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.models.text_encoder import TEXT_TOKENS, TextEncoder

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

DESCRIPTION, WEIGHTS = "table_models.json", "table_models.safetensors"
FILES = (DESCRIPTION, WEIGHTS)
MAX_WORDS, MAX_CHARACTERS = 20_000, 30_000  # vocabularies, of the text and of the title: the encoder's file stays near 60 MB
WHOLE, TITLE = ("words", "characters"), ("title_words", "title_characters")  # vectorisers of the text, and of its first line
TEXT_DIMENSION = 256
MAX_PATH_LISTINGS = 20_000  # training listings of the path model: bounds its fitting to about half a minute
MIN_VALIDATION = 20  # listings: with fewer, the weights below stay as they are
CATEGORY_WEIGHTS = (1.5, 0.7, 0.4)  # of margins, margins standardised, naive Bayes standardised; near what real listings gave
SMALLEST = 1e-6  # probability, before its logarithm is taken
MEANING_SCALE = 1.5  # length of the meaning's vector beside the TF-IDF's of 1 to 2; 1 and 2 were no better
NEVER = -1e4  # logit of a path that a fit has not seen
FITTED = ("margin", "margin_bias", "naive_bayes", "path", "path_bias")  # what labels teach: fitted anew by refit()


@dataclass(frozen=True)
class PathModel:
    """The part of TableModels that tells the likely paths of texts that are encoded already: it needs no scikit-learn.

    paths: L, of the training listings; path: (T, L); path_bias: (L,).
    """

    paths: list[str]
    path: np.ndarray
    path_bias: np.ndarray

    @classmethod
    def load(cls, model_dir: Path) -> "PathModel":
        arrays = read_arrays(model_dir / WEIGHTS)
        return cls(reading.read_json(model_dir / DESCRIPTION)["paths"], arrays["path"], arrays["path_bias"])

    def probabilities(self, text_vectors: np.ndarray) -> np.ndarray:
        """(N, L) float32 rows that sum to 1, of `paths`, from TableModels.encode()'s (N, T)."""
        return softmax(text_vectors @ self.path + self.path_bias, axis=1)


@dataclass
class TableModels:
    """F: TF-IDF features of the text, G: those of its title, E: numbers of the text encoder, 0 without one; W <= F: words;
    K <= C: classes that training saw; L: paths.

    Arrays are float32, (inputs, outputs): a sparse row then reads whole rows of them.
    """

    vectorisers: dict[str, "TfidfVectorizer"]  # of WHOLE and TITLE, in this order
    svd: np.ndarray  # (F, T)
    classes: np.ndarray  # (K,) int, ascending
    n_classes: int  # C
    margin: np.ndarray  # (F + G + E, K) linear SVM, one against the rest
    margin_bias: np.ndarray  # (K,)
    naive_bayes: np.ndarray  # (W, K)
    path: np.ndarray  # (T, L) multinomial logistic regression
    path_bias: np.ndarray  # (L,)
    paths: list[str]  # of the training listings, "A / B / C", ascending
    category_weights: np.ndarray = field(default_factory=lambda: np.array(CATEGORY_WEIGHTS))
    photo_weight: float = 1.0  # one over the temperature of a photo's probabilities where there are no words
    fusion_weights: np.ndarray = field(default_factory=lambda: np.array([0.5, 0.5]))  # of photo, of text
    first: dict[str, np.ndarray] = field(default_factory=dict)  # "classes" and FITTED before refit()
    encoder: TextEncoder | None = None  # what gives the E numbers

    def before_refit(self) -> "TableModels":
        """The models as calibrate() saw them, for who asks about validation listings, which refit() has learned from."""
        return replace(self, **self.first, first={})

    def meanings(self, texts: list[str]) -> np.ndarray:
        """(N, E) float32 unit rows of the text encoder, zeros for a blank text; (N, 0) without an encoder."""
        return _meanings(self.encoder, texts)

    def features(self, texts: list[str]) -> scipy.sparse.csr_matrix:
        """(N, F + G) float32: TF-IDF of the text, then of its title, which is all before the first newline.

        As the vectorisers transform, whose checks of what they made themselves take ten times longer for one text.
        """
        parts = [(vectoriser, vectoriser.build_analyzer(), _part(name, texts)) for name, vectoriser in self.vectorisers.items()]
        columns, values, ends = [], [], np.zeros(len(texts) + 1, np.int32)
        for row in range(len(texts)):
            first, ends[row + 1] = 0, ends[row]
            for vectoriser, analyse, part in parts:
                found = Counter(map(vectoriser.vocabulary_.get, analyse(part[row])))
                del found[None]  # what the vocabulary does not hold
                order = sorted(found)
                weights = np.log(np.array([found[column] for column in order], np.float32)) + 1
                weights *= vectoriser.idf_[order]
                columns.append(np.array(order, np.int32) + first)
                values.append(weights / max(np.linalg.norm(weights), SMALLEST))
                first += len(vectoriser.vocabulary_)
                ends[row + 1] += len(order)
        return scipy.sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=(len(texts), first))

    def encode(self, texts: list[str]) -> np.ndarray:
        """(N, T) float32 unit rows; a text without a known word gives a row of zeros."""
        return self.vectors_of(self.features(texts))

    def category_probabilities(self, texts: list[str], meanings: np.ndarray | None = None) -> np.ndarray:
        """(N, C) float32 rows that sum to 1, calibrated by calibrate(); classes that training never saw get 0.

        meanings: meanings() of the texts, where they are there already.
        """
        return self._categories(self.features(texts), self.meanings(texts) if meanings is None else meanings)

    def read(self, texts: list[str], meanings: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """encode() and category_probabilities(), from features that are computed once."""
        features = self.features(texts)
        return self.vectors_of(features), self._categories(features, self.meanings(texts) if meanings is None else meanings)

    def path_probabilities(self, text_vectors: np.ndarray) -> np.ndarray:
        """(N, L) float32 rows that sum to 1, of `paths`, from encode()'s (N, T); a level's is the sum over the paths below."""
        return PathModel(self.paths, self.path, self.path_bias).probabilities(text_vectors)

    def calibrate(self, texts: list[str], labels: np.ndarray, meanings: np.ndarray | None = None) -> None:
        """Set the category's weights from listings that fit() did not see; fewer than MIN_VALIDATION change nothing."""
        rows = np.flatnonzero(np.isin(labels, self.classes))
        if len(rows) >= MIN_VALIDATION:
            chosen = [texts[row] for row in rows]
            scores = self._scores(self.features(chosen), self.meanings(chosen) if meanings is None else meanings[rows])
            positions = np.searchsorted(self.classes, np.asarray(labels)[rows])
            self.category_weights = _likeliest_weights(scores, positions, np.array(CATEGORY_WEIGHTS))

    def fit_fusion(self, photo: np.ndarray, text: np.ndarray, labels: np.ndarray) -> None:
        """Set fuse()'s weights from listings that no model was fitted on; fewer than MIN_VALIDATION photos change nothing.

        photo: (N, C) probabilities, rows of NaN where there is no photo; text: (N, C) of category_probabilities(); labels: (N,).
        """
        has_photo = ~np.isnan(photo).any(axis=1)
        if has_photo.sum() >= MIN_VALIDATION:
            logs, labels = _log(np.stack([photo[has_photo], text[has_photo]])), np.asarray(labels)[has_photo]
            self.photo_weight = float(_likeliest_weights(logs[:1], labels, np.ones(1))[0])
            self.fusion_weights = _likeliest_weights(logs, labels, np.array([0.5, 0.5]))

    def fuse(self, photo: np.ndarray | None, text: np.ndarray | None) -> np.ndarray:
        """(N, C) rows that sum to 1, from a photo's probabilities and category_probabilities(), either of them None.

        A row of NaN in `photo` is a listing without one. Raises ValueError when both are None.
        Source: logarithmic opinion pool with fitted weights (Heskes, "Selecting weighting factors", NIPS 1997).
        """
        if photo is None and text is None:
            raise ValueError("neither a photo nor words")
        if photo is None:
            return text
        if text is None:
            return softmax(self.photo_weight * _log(photo), axis=1)
        pooled = softmax(np.tensordot(self.fusion_weights, _log(np.stack([photo, text])), 1), axis=1).astype(np.float32)
        return np.where(np.isnan(photo).any(axis=1, keepdims=True), text, pooled)

    def vectors_of(self, features: scipy.sparse.csr_matrix) -> np.ndarray:
        """encode() of the texts whose features() these are."""
        vectors = features[:, : len(self.svd)] @ self.svd
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), SMALLEST)

    def refit(
        self, texts: list[str], labels: np.ndarray, paths: list[str], seed: int, meanings: np.ndarray | None = None
    ) -> "TableModels":
        """The same words, vectors and weights, with classifiers fitted on these listings: those of fit() and of calibrate().

        What calibration and fusion told of the first fit holds for the second, which has seen a little more of the same.
        """
        meanings = self.meanings(texts) if meanings is None else meanings
        labels, paths = np.asarray(labels), np.asarray(paths)
        n_words = len(self.naive_bayes)
        fitted, paths = _fit_classifiers(self.features(texts), n_words, self.svd, meanings, labels, paths, seed)
        first = {name: getattr(self, name) for name in ("classes", *FITTED)}
        # Columns for the paths that only the new listings have.
        own = np.searchsorted(paths, self.paths)
        for name, missing in (("path", 0), ("path_bias", NEVER)):
            wide = np.full((*first[name].shape[:-1], len(paths)), missing, np.float32)
            wide[..., own] = first[name]
            first[name] = wide
        return replace(self, **fitted, paths=paths, first=first)

    def _categories(self, features: scipy.sparse.csr_matrix, meanings: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((features.shape[0], self.n_classes), np.float32)
        scores = self._scores(features, meanings)
        probabilities[:, self.classes] = softmax(np.tensordot(self.category_weights, scores, 1), axis=1)
        return probabilities

    def _scores(self, features: scipy.sparse.csr_matrix, meanings: np.ndarray) -> np.ndarray:
        """(3, N, K): SVM margins, the same standardised by row, and naive Bayes on the presence of words standardised by row.

        Each is right on other listings; and naive Bayes alone grows with the length of the text, which standardising undoes.
        """
        words = features.shape[1]
        margins = features @ self.margin[:words] + MEANING_SCALE * (meanings @ self.margin[words:]) + self.margin_bias
        naive_bayes = _presence(features, len(self.naive_bayes)) @ self.naive_bayes
        return np.stack([margins, _standardise(margins), _standardise(naive_bayes)])

    def save(self, model_dir: Path) -> None:
        """Write the arrays as safetensors and the rest as JSON: equal models give equal bytes."""
        arrays = {name: getattr(self, name) for name in ("svd", *FITTED)}
        arrays |= {f"first.{name}": self.first[name] for name in FITTED if self.first}
        for name, vectoriser in self.vectorisers.items():
            arrays[f"{name}.idf"] = _float32(vectoriser.idf_)
        rest = {
            "n_classes": self.n_classes,
            "classes": self.classes.tolist(),
            "first_classes": self.first["classes"].tolist() if self.first else None,
            "category_weights": self.category_weights.tolist(),
            "photo_weight": self.photo_weight,
            "fusion_weights": self.fusion_weights.tolist(),
            "paths": self.paths,
            "vocabularies": {name: each.get_feature_names_out().tolist() for name, each in self.vectorisers.items()},
        }
        atomic.write_bytes(model_dir / WEIGHTS, safetensors.numpy.save(arrays))
        atomic.write_json(model_dir / DESCRIPTION, rest, indent=None)

    @classmethod
    def load(cls, model_dir: Path, encoder: TextEncoder | None = None) -> "TableModels":
        """encoder: of the same folder, where it is open already."""
        rest, arrays = reading.read_json(model_dir / DESCRIPTION), read_arrays(model_dir / WEIGHTS)
        rest["vectorisers"] = {name: _vectoriser(name, words) for name, words in rest.pop("vocabularies").items()}
        for name, vectoriser in rest["vectorisers"].items():
            vectoriser.idf_ = arrays.pop(f"{name}.idf")
        for name in ("classes", "category_weights", "fusion_weights"):
            rest[name] = np.array(rest[name])
        first = {name: arrays.pop(f"first.{name}") for name in FITTED if f"first.{name}" in arrays}
        if (classes := rest.pop("first_classes")) is not None:
            first["classes"] = np.array(classes)
        models = cls(**rest, **arrays, first=first)
        n_features = sum(len(vectoriser.vocabulary_) for vectoriser in models.vectorisers.values())
        if len(models.margin) > n_features:
            models.encoder = encoder or TextEncoder.load(model_dir)
        return models


def fit(
    texts: list[str],
    labels: np.ndarray,
    paths: list[str],
    n_classes: int,
    seed: int,
    encoder: TextEncoder | None = None,
    meanings: np.ndarray | None = None,
) -> TableModels:
    """Fit on the training listings only; the weights of the scores keep their defaults until calibrate() and fit_fusion().

    texts: N, of listings.text(); labels: (N,) int; paths: N full category paths "A / B / C"; encoder, meanings: what tells the
    texts' meaning, and TableModels.meanings() of them where that is there already.
    """
    from sklearn.decomposition import TruncatedSVD  # who only uses a model that is there need not wait for it

    vectorisers = {name: _vectoriser(name) for name in WHOLE + TITLE}
    try:
        blocks = [vectoriser.fit_transform(_part(name, texts)) for name, vectoriser in vectorisers.items()]
    except ValueError:
        raise StageError("the training listings hold no words: check the columns of their names and descriptions") from None
    matrix, features = scipy.sparse.hstack(blocks[: len(WHOLE)], format="csr"), scipy.sparse.hstack(blocks, format="csr")
    labels, paths = np.asarray(labels), np.asarray(paths)
    with np.errstate(divide="ignore", invalid="ignore"):  # its share of explained variance, unused, where all texts are the same
        svd = TruncatedSVD(n_components=min(TEXT_DIMENSION, min(matrix.shape) - 1), random_state=seed).fit(matrix)
    components = _float32(svd.components_.T)
    meanings = _meanings(encoder, texts) if meanings is None else meanings
    fitted, paths = _fit_classifiers(features, blocks[0].shape[1], components, meanings, labels, paths, seed)
    return TableModels(vectorisers, components, n_classes=n_classes, paths=paths, encoder=encoder, **fitted)


def _meanings(encoder: TextEncoder | None, texts: list[str]) -> np.ndarray:
    return np.empty((len(texts), 0), np.float32) if encoder is None else encoder.encode(texts, TEXT_TOKENS)


def _fit_classifiers(
    features: scipy.sparse.csr_matrix,
    n_words: int,
    svd: np.ndarray,
    meanings: np.ndarray,
    labels: np.ndarray,
    paths: np.ndarray,
    seed: int,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """TableModels' classes and FITTED, and its paths."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import ComplementNB
    from sklearn.preprocessing import normalize
    from sklearn.svm import LinearSVC

    # Every C and alpha was the best of three or four round numbers on listings outside the training data.
    naive_bayes = ComplementNB(alpha=0.3).fit(_presence(features, n_words), labels)
    told = scipy.sparse.hstack([features, scipy.sparse.csr_matrix(MEANING_SCALE * meanings)], format="csr")
    rows = _sample(paths, seed)
    vectors = normalize(features[rows, : len(svd)] @ svd)
    margins = _fit_linear(LinearSVC(C=0.3, random_state=seed), told, labels)
    by_path = _fit_linear(LogisticRegression(C=20, max_iter=300), vectors, paths[rows])
    fitted = dict(zip(("margin", "margin_bias"), margins, strict=True)) | dict(zip(("path", "path_bias"), by_path, strict=True))
    fitted |= {"classes": naive_bayes.classes_, "naive_bayes": _float32(naive_bayes.feature_log_prob_.T)}
    return fitted, np.unique(paths).tolist()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The float32 arrays of a safetensors file that train.py wrote, memory-mapped: the workers of a server share them.

    Raises StageError when it is missing or damaged. Source of the layout, which safetensors' own reader copies: its README.
    """
    try:
        with safetensors.safe_open(path, "numpy"):  # which checks it
            data = np.asarray(np.memmap(path, np.uint8, "r"))
    except (FileNotFoundError, safetensors.SafetensorError):
        raise StageError(f"{path} is missing or damaged: run python train.py again") from None
    start = 8 + int(data[:8].view("<u8")[0])
    arrays = {}
    for name, tensor in json.loads(data[8:start].tobytes()).items():
        begin, end = tensor["data_offsets"]
        arrays[name] = data[start + begin : start + end].view("<f4").reshape(tensor["shape"])
    return arrays


def _vectoriser(name: str, vocabulary: list[str] | None = None) -> "TfidfVectorizer":
    """Words and word pairs, or characters within words; with a fixed vocabulary, or one to be fitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if name.endswith("words"):
        kind = {"analyzer": "word", "ngram_range": (1, 2), "max_features": MAX_WORDS, "token_pattern": r"(?u)\b\w+\b"}
    else:
        kind = {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": MAX_CHARACTERS}
    return TfidfVectorizer(**kind, sublinear_tf=True, dtype=np.float32, strip_accents="unicode", vocabulary=vocabulary)


def _part(name: str, texts: list[str]) -> list[str]:
    """What a vectoriser sees of the texts."""
    return [text.partition("\n")[0] for text in texts] if name in TITLE else texts


def _likeliest_weights(scores: np.ndarray, labels: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(S,) weights >= 0 by which softmax(sum of weighted scores) makes the labels likeliest: convex, so one optimum.

    scores: (S, N, K); labels: (N,) in 0..K-1. A normal prior around `start`, worth one listing, keeps the weights finite where
    the scores tell every listing apart. Source: temperature scaling, Guo et al. 2017, with a weight for each score.
    """
    from scipy.optimize import minimize

    rows = np.arange(len(labels))
    scores = scores.astype(np.float64)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(np.tensordot(weights, scores, 1), axis=1)
        gradient = ((np.exp(logs) * scores).sum(axis=2) - scores[:, rows, labels]).mean(axis=1)
        prior = (weights - start) / len(labels)
        return (prior @ (weights - start)) / 2 - logs[rows, labels].mean(), gradient + prior

    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x


def _sample(paths: np.ndarray, seed: int) -> np.ndarray:
    """Rows of at most MAX_PATH_LISTINGS random listings, and one of every path besides; ascending."""
    order = np.random.default_rng(seed).permutation(len(paths))
    one_of_each = order[np.unique(paths[order], return_index=True)[1]]
    return np.union1d(order[:MAX_PATH_LISTINGS], one_of_each)


def _fit_linear(
    linear: "LinearSVC | LogisticRegression", features: np.ndarray | scipy.sparse.csr_matrix, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A linear classifier's (inputs, K) coefficients and (K,) biases, of which scikit-learn keeps one for two classes, and for
    one class refuses to fit any."""
    if len(classes := np.unique(labels)) == 1:
        return np.zeros((features.shape[1], 1), np.float32), np.zeros(1, np.float32)
    linear.fit(features, labels)
    coefficients, bias = linear.coef_.T, linear.intercept_
    if len(classes) == 2:
        coefficients, bias = np.hstack([-coefficients, coefficients]) / 2, np.hstack([-bias, bias]) / 2
    return _float32(coefficients), _float32(bias)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _presence(features: scipy.sparse.csr_matrix, n_words: int) -> scipy.sparse.csr_matrix:
    return (features[:, :n_words] != 0).astype(np.float32)


def _standardise(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(scores.std(axis=1, keepdims=True), 1e-9)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities, SMALLEST, 1))
