"""The price model: log10 prices from words, category path, county and photo, each of which may be unknown; a calibrated range."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import lightgbm
import numpy as np
import safetensors.numpy
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from marketplace.cleaning import listings
from marketplace.cleaning.prices import POUNDS, count_signs, named_amounts
from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.models.sample_sizes import LEAST_PRICED
from marketplace.models.text_model import TableModels, read_arrays

DESCRIPTION, WEIGHTS = "price_model.json", "price_model.safetensors"
FILES = (DESCRIPTION, WEIGHTS)
COVERAGE = 0.8  # the share of prices between the 10% and the 90% quantile
MAX_LISTINGS = 100_000  # training listings: bounds memory and time
SMOOTHING = 5.0  # listings' worth of its parent's mean in a path's mean price
NEIGHBOUR_LISTINGS = 20_000  # drawn from the training listings: 20 MB, and a millisecond a text
NEIGHBOURS = (5, 20)
SHARPNESS = 4  # power of the cosines that weigh the neighbours
BLOCK_ROWS = 512  # texts compared with all neighbours at a time
OBJECTIVES = ({"objective": "quantile", "alpha": 0.1}, {"objective": "l1"}, {"objective": "quantile", "alpha": 0.9})
ROUNDS = 150
BOOSTING = {
    **{"learning_rate": 0.03, "num_leaves": 31, "min_data_in_leaf": 40, "feature_fraction": 0.7},
    **{"bagging_fraction": 0.8, "bagging_freq": 1},
    **{"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1},  # equal bytes on any machine
}
LEAST_BOOSTED = 2  # rows: of one alone a bag of 0.8 of them holds none
# Of the width, in factors of ten, of the range of all prices: wider ones tell little. Chosen on the validation listings of a real
# export by python benchmarks/price_ranges.py: narrower ones of words and photo (93%) err 0.51 times as much as the median price
# always does, wider ones 0.72 times; those of a small photo alone, of which 97% are wider, 0.93 times.
MOST_INFORMATIVE = 0.8
MEANING_PENALTY = 1.0  # of the ridge on the text encoder's numbers
# What sellers say of the state, the number and the stuff of a thing, in whole words.
CUES = (
    *("new", "brand new", "boxed", "used", "good condition", "excellent", "broken", "spares", "faulty", "bundle", "job lot"),
    *("each", "collection", "warranty", "sealed", "vintage", "antique", "rrp", "cost", "offers", "ono", "free", "swap"),
    *("wanted", "gold", "leather", "solid", "small", "large", "set of", "pair", "kids"),
)
# Columns of the boosters' features: predictions by words and by meaning, numbers, named prices, cues; the prices of like texts,
# by words and by meaning; the path; the county; the photo.
RIDGES, NUMBERS, NAMED = slice(0, 2), slice(2, 7), slice(7, 10)
SAID = slice(10, 10 + len(CUES))
LIKE = slice(SAID.stop, SAID.stop + 8)
TEXT = slice(0, LIKE.stop)
PATH, COUNTY, PHOTO = (slice(LIKE.stop + start, LIKE.stop + stop) for start, stop in ((0, 4), (4, 5), (5, 6)))
N_FEATURES = PHOTO.stop


@dataclass
class Evidence:
    """N rows of what is known of listings.

    texts, paths ("A / B / C"), counties: "" where unknown, made of None too; vectors: (N, D) float32 photo vectors, the mean of a
    listing's, NaN where it has none. None for a whole column: unknown for all rows; (N, 0) are then the vectors. meanings:
    TableModels.meanings() of the texts, where that is there already.
    """

    texts: list[str]
    paths: list | None = None
    counties: list | None = None
    vectors: np.ndarray | None = None
    meanings: np.ndarray | None = None

    def __post_init__(self):
        nothing = [""] * len(self.texts)
        self.texts = list(self.texts)
        self.paths = [(path or "").strip() for path in (nothing if self.paths is None else self.paths)]
        self.counties = [(county or "").strip() for county in (nothing if self.counties is None else self.counties)]
        self.vectors = np.empty((len(nothing), 0), np.float32) if self.vectors is None else np.asarray(self.vectors, np.float32)

    @property
    def has_photo(self) -> np.ndarray:
        """(N,) bool."""
        return ~np.isnan(self.vectors).any(axis=1) if self.vectors.shape[1] else np.zeros(len(self.texts), bool)

    def take(self, rows: np.ndarray) -> "Evidence":
        texts, paths, counties = ([column[row] for row in rows] for column in (self.texts, self.paths, self.counties))
        return Evidence(texts, paths, counties, self.vectors[rows], None if self.meanings is None else self.meanings[rows])


@dataclass
class FirstLayer:
    """Plain predictions from the evidence, from which the boosters go on: ridge, the prices of like texts, mean prices.

    text: (F,), path: (F + P,), photo: (D,) or (0,) where no listing had one, meaning: (E,): float32 coefficients; biases: of the
    four. neighbours: (n, T) float32 text vectors of training listings, neighbour_meanings: (n, E), neighbour_prices: (n,) float32
    log10 prices.
    path_means, county_means: name -> shrunk mean log10 prices, "" for all.
    """

    text: np.ndarray
    path: np.ndarray
    photo: np.ndarray
    meaning: np.ndarray
    neighbours: np.ndarray
    neighbour_meanings: np.ndarray
    neighbour_prices: np.ndarray
    biases: list[float]
    paths: list[str]
    path_means: dict[str, float]
    county_means: dict[str, float]
    currency: str = POUNDS.currency

    @classmethod
    def fit(
        cls,
        features: scipy.sparse.csr_matrix,
        vectors: np.ndarray,
        evidence: Evidence,
        log_prices: np.ndarray,
        currency: str = POUNDS.currency,
    ) -> "FirstLayer":
        """features, vectors: of TableModels.features() and vectors_of(); evidence, with its meanings, log_prices: of the same
        listings, shuffled."""
        one_hot = CountVectorizer(analyzer=_prefixes, dtype=np.float32)
        try:
            path_columns = one_hot.fit_transform(evidence.paths)
        except ValueError:  # no path at all
            path_columns = scipy.sparse.csr_matrix((len(log_prices), 0), dtype=np.float32)
        ridges = [
            _ridge(features, log_prices),
            _ridge(scipy.sparse.hstack([features, path_columns], format="csr"), log_prices),
            _ridge(evidence.vectors[evidence.has_photo], log_prices[evidence.has_photo]),
            _ridge(evidence.meanings, log_prices, MEANING_PENALTY),
        ]
        return cls(
            *(coefficients for coefficients, _ in ridges),
            vectors[:NEIGHBOUR_LISTINGS],
            evidence.meanings[:NEIGHBOUR_LISTINGS],
            log_prices[:NEIGHBOUR_LISTINGS].astype(np.float32),
            biases=[bias for _, bias in ridges],
            paths=one_hot.get_feature_names_out().tolist() if path_columns.shape[1] else [],
            path_means=_shrunk_means([_prefixes(path) for path in evidence.paths], log_prices),
            county_means=_shrunk_means([[county] if county else [] for county in evidence.counties], log_prices),
            currency=currency,
        )

    def columns(self, features: scipy.sparse.csr_matrix, vectors: np.ndarray, evidence: Evidence) -> np.ndarray:
        """(N, N_FEATURES) float64; NaN where the evidence, which has its meanings, is unknown."""
        columns = np.full((len(evidence.texts), N_FEATURES), np.nan)
        has_text = np.array([bool(text.strip()) for text in evidence.texts], bool)
        has_path = np.array([bool(path) for path in evidence.paths], bool)
        columns[has_text, 0] = (features @ self.text + self.biases[0])[has_text]
        written = [text for text in evidence.texts if text.strip()]
        if written:
            columns[has_text, NUMBERS] = [_numbers(text, self.currency) for text in written]
            columns[has_text, NAMED] = [_named_prices(text, self.currency) for text in written]
            columns[has_text, SAID] = [_cues(text) for text in written]
        by_words, by_meaning = (slice(start, start + 4) for start in (LIKE.start, LIKE.start + 4))
        has_vector = vectors.any(axis=1)
        columns[has_vector, by_words] = self._like_prices(vectors[has_vector], self.neighbours)
        has_meaning = evidence.meanings.any(axis=1)
        if has_meaning.any():
            meanings = evidence.meanings[has_meaning]
            columns[has_meaning, 1] = meanings @ self.meaning + self.biases[3]
            columns[has_meaning, by_meaning] = self._like_prices(meanings, self.neighbour_meanings)
        if has_path.any():
            words = features @ self.path[: features.shape[1]]
            bonus = dict(zip(self.paths, self.path[features.shape[1] :].tolist(), strict=True))
            by_path = [sum(bonus.get(prefix, 0) for prefix in _prefixes(path)) for path in evidence.paths]
            columns[has_path, PATH.start] = (words + by_path + self.biases[1])[has_path]
            columns[has_path, PATH.start + 1 : PATH.stop] = [self._path_means(path) for path in evidence.paths if path]
        columns[:, COUNTY.start] = [self.county_means.get(county, np.nan) if county else np.nan for county in evidence.counties]
        if len(self.photo) and evidence.vectors.shape[1]:
            columns[:, PHOTO.start] = evidence.vectors @ self.photo + self.biases[2]
        return columns

    def _like_prices(self, vectors: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """(N, 4): mean and standard deviation of the log prices of the 5 and of the 20 texts most like each, weighed by cosine.

        Source: Dudani, "The distance-weighted k-nearest-neighbor rule", 1976. Rounded, so that a text alone and among others,
        whose products differ in their last bits, takes the same way through the boosters' trees.
        """
        found = np.empty((len(vectors), 2 * len(NEIGHBOURS)))
        for start in range(0, len(vectors), BLOCK_ROWS):
            cosines = vectors[start : start + BLOCK_ROWS] @ neighbours.T
            for column, k in enumerate(NEIGHBOURS):
                k = min(k, len(neighbours))
                nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
                weights = np.take_along_axis(cosines, nearest, axis=1).clip(1e-3).astype(np.float64) ** SHARPNESS
                weights /= weights.sum(axis=1, keepdims=True)
                prices = self.neighbour_prices[nearest]
                mean = (weights * prices).sum(axis=1, keepdims=True)
                spread = np.sqrt((weights * (prices - mean) ** 2).sum(axis=1))
                found[start : start + len(cosines), 2 * column : 2 * column + 2] = np.stack([mean[:, 0], spread], axis=1)
        return found.round(4)

    def _path_means(self, path: str) -> list[float]:
        """Of the first level, the second and the whole path; what training never saw takes its parent's."""
        means = [self.path_means[""]]
        for prefix in _prefixes(path):
            means.append(self.path_means.get(prefix, means[-1]))
        return [means[min(depth, len(means) - 1)] for depth in (1, 2)] + [means[-1]]


@dataclass
class PriceModel:
    """tables: of the same training listings; boosters: of the 10%, 50% and 90% quantiles.

    margins: log10 prices added at both ends of the range, where the path is known, where words are, and where neither is.
    out_of_fold: of fit() alone, which of its rows it learned from, and (n, 3) their quantiles by models that had not seen them.
    """

    tables: TableModels
    first: FirstLayer
    boosters: list[lightgbm.Booster]
    margins: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    out_of_fold: tuple[np.ndarray, np.ndarray] | None = None

    def quantiles(self, evidence: Evidence) -> np.ndarray:
        """(N, 3) float64 log10 prices, ascending in each row: the median, and the bounds that hold 80% of prices."""
        return self._widened(self._uncalibrated(evidence), evidence)

    def unseen_quantiles(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
        """Which rows fit() learned from, and their quantiles() by models that had not seen them. evidence: that of fit()."""
        rows, quantiles = self.out_of_fold
        return rows, self._widened(quantiles.copy(), evidence.take(rows))

    def _widened(self, quantiles: np.ndarray, evidence: Evidence) -> np.ndarray:
        margins = np.array(self.margins)[[_kind(*row) for row in zip(evidence.texts, evidence.paths, strict=True)]]
        quantiles[:, 0] = np.minimum(quantiles[:, 0] - margins, quantiles[:, 1])
        quantiles[:, 2] = np.maximum(quantiles[:, 2] + margins, quantiles[:, 1])
        return quantiles

    def is_informative(self, low: float, high: float) -> bool:
        """Whether a range of prices says more than that prices differ: MOST_INFORMATIVE."""
        cheap, dear = np.quantile(self.first.neighbour_prices, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return bool(math.log10(high / max(low, 0.01)) <= MOST_INFORMATIVE * (dear - cheap))

    def price_range(
        self,
        text: str,
        path: str | None = None,
        county: str | None = None,
        vector: np.ndarray | None = None,
        meaning: np.ndarray | None = None,
    ) -> dict[str, float | bool]:
        """As range_of() tells: the median guess, and the bounds between which 80% of prices lie; vector: (D,), meaning: (E,)."""
        vectors, meanings = (None if each is None else each[None] for each in (vector, meaning))
        return self.range_of(*(10 ** self.quantiles(Evidence([text], [path], [county], vectors, meanings))[0]).tolist())

    def range_of(self, low: float, median: float, high: float) -> dict[str, float | bool]:
        """Of prices, to the hundredth."""
        prices = {"low": round(low, 2), "median": round(median, 2), "high": round(high, 2)}
        return prices | {"is_informative": self.is_informative(prices["low"], prices["high"])}

    def calibrate(self, evidence: Evidence, prices: np.ndarray, plausible: np.ndarray) -> None:
        """Set the margins from listings that fit() did not see; fewer than LEAST_PRICED plausible ones change nothing.

        Source: conformalized quantile regression, Romano, Patterson and Candes 2019, for each kind of evidence by itself.
        """
        rows = np.flatnonzero(plausible)
        if len(rows) < LEAST_PRICED:
            return
        evidence, log_prices = _with_meanings(evidence.take(rows), self.tables), np.log10(np.asarray(prices)[rows])
        without_path = Evidence(evidence.texts, vectors=evidence.vectors, meanings=evidence.meanings)
        kinds = (evidence, without_path, Evidence([""] * len(rows), vectors=evidence.vectors))
        rank = math.ceil(round((len(rows) + 1) * COVERAGE, 6))  # of the scores, from 1
        for kind, seen in enumerate(kinds):
            low, _, high = self._uncalibrated(seen).T
            self.margins[kind] = float(np.sort(np.maximum(low - log_prices, log_prices - high))[rank - 1])

    def _uncalibrated(self, evidence: Evidence) -> np.ndarray:
        evidence = _with_meanings(evidence, self.tables)
        features = self.tables.features(evidence.texts)
        return _predict(self.boosters, self.first.columns(features, self.tables.vectors_of(features), evidence))

    def save(self, model_dir: Path) -> None:
        """Write the coefficients as safetensors and the rest, boosters included, as JSON: equal models give equal bytes."""
        rest = {name: getattr(self.first, name) for name in ("biases", "paths", "path_means", "county_means", "currency")}
        boosters = [booster.model_to_string() for booster in self.boosters]
        names = ("text", "path", "photo", "meaning", "neighbours", "neighbour_meanings", "neighbour_prices")
        arrays = {name: np.ascontiguousarray(getattr(self.first, name)) for name in names}
        atomic.write_bytes(model_dir / WEIGHTS, safetensors.numpy.save(arrays))
        atomic.write_json(model_dir / DESCRIPTION, {"margins": self.margins, "first": rest, "boosters": boosters}, indent=None)

    @classmethod
    def load(cls, model_dir: Path, tables: TableModels) -> "PriceModel":
        """tables: of the same folder, TableModels.load(model_dir)."""
        rest = reading.read_json(model_dir / DESCRIPTION)
        first = FirstLayer(**rest["first"], **read_arrays(model_dir / WEIGHTS))
        return cls(tables, first, [lightgbm.Booster(model_str=text) for text in rest["boosters"]], rest["margins"])


def check_evidence(plausible: np.ndarray, clusters: np.ndarray) -> None:
    """StageError where there is too little to fit() on."""
    if len(np.unique(clusters[plausible])) < 2:
        raise StageError(
            "fewer than two different training listings have a plausible price: check the column of prices in the table"
        )


def fit(
    tables: TableModels,
    evidence: Evidence,
    prices: np.ndarray,
    plausible: np.ndarray,
    clusters: np.ndarray,
    seed: int,
    currency: str = POUNDS.currency,
) -> PriceModel:
    """Fit on the training listings with a plausible price; the margins stay 0 until calibrate().

    prices: (N,) in the currency; plausible: (N,) bool, whether the price tells anything (and is above 0); clusters: (N,), equal
    for duplicates. The boosters learn from predictions that the first layer made for listings of which it had seen no duplicate
    (stacking, Wolpert 1992), and see each listing three times: with everything, without its path and county, and with its photo
    alone.
    """
    generator = np.random.default_rng(seed)
    rows = generator.permutation(np.flatnonzero(plausible))[:MAX_LISTINGS]
    check_evidence(plausible, clusters)
    evidence, log_prices = _with_meanings(evidence.take(rows), tables), np.log10(np.asarray(prices)[rows])
    features = tables.features(evidence.texts)
    text_vectors = tables.vectors_of(features)
    columns = np.empty((len(rows), N_FEATURES))
    folds = GroupKFold(min(5, len(np.unique(clusters[rows]))), shuffle=True, random_state=seed)
    parts = list(folds.split(rows, groups=clusters[rows]))
    for seen, unseen in parts:
        part = FirstLayer.fit(features[seen], text_vectors[seen], evidence.take(seen), log_prices[seen], currency)
        columns[unseen] = part.columns(features[unseen], text_vectors[unseen], evidence.take(unseen))

    def hide(what: list[slice], share: float, columns: np.ndarray) -> np.ndarray:
        hidden = columns.copy()
        for part in what:
            hidden[generator.random(len(columns)) < share, part] = np.nan
        return hidden

    views = [
        hide([LIKE, COUNTY, PHOTO], 0.25, columns),
        hide([PHOTO], 0.5, hide([PATH, COUNTY], 1, columns)),
        hide([TEXT, PATH, COUNTY], 1, columns),
    ]
    data = lightgbm.Dataset(np.vstack(views), np.tile(log_prices, len(views)), params=BOOSTING, free_raw_data=False)
    unseen_quantiles = np.empty((len(rows), len(OBJECTIVES)))
    for seen, unseen in parts:
        seen = np.resize(seen, max(len(seen), LEAST_BOOSTED))
        of_seen = lightgbm.Dataset(columns[seen], log_prices[seen], params=BOOSTING, free_raw_data=False)
        unseen_quantiles[unseen] = _predict(_boost(of_seen, seed), columns[unseen])
    first = FirstLayer.fit(features, text_vectors, evidence, log_prices, currency)
    return PriceModel(tables, first, _boost(data, seed), out_of_fold=(rows, unseen_quantiles))


def _boost(data: lightgbm.Dataset, seed: int) -> list[lightgbm.Booster]:
    return [lightgbm.train(BOOSTING | objective | {"seed": seed}, data, ROUNDS) for objective in OBJECTIVES]


def _predict(boosters: list[lightgbm.Booster], columns: np.ndarray) -> np.ndarray:
    """(N, 3) ascending in each row."""
    quantiles = np.stack([booster.predict(columns, num_threads=1) for booster in boosters], axis=1)
    quantiles[:, 0], quantiles[:, 2] = quantiles.min(axis=1), quantiles.max(axis=1)  # they may cross
    return quantiles


def _with_meanings(evidence: Evidence, tables: TableModels) -> Evidence:
    return evidence if evidence.meanings is not None else replace(evidence, meanings=tables.meanings(evidence.texts))


def _ridge(
    features: scipy.sparse.csr_matrix | np.ndarray, log_prices: np.ndarray, penalty: float = 1.5
) -> tuple[np.ndarray, float]:
    if not all(features.shape):
        return np.empty(0, np.float32), 0.0
    solver = "sparse_cg" if scipy.sparse.issparse(features) else "auto"
    ridge = Ridge(alpha=penalty, solver=solver).fit(features, log_prices)
    return np.ascontiguousarray(ridge.coef_, np.float32), float(ridge.intercept_)


def _prefixes(path: str) -> list[str]:
    """["A", "A / B", "A / B / C"] of "A / B / C"."""
    levels = listings.category_levels(path)
    return [listings.CATEGORY_SEPARATOR.join(levels[: depth + 1]) for depth in range(len(levels))]


def _shrunk_means(chains: list[list[str]], values: np.ndarray) -> dict[str, float]:
    """name -> mean of the values below it, drawn towards its parent's as if by SMOOTHING more values; "" is the root.

    chains: for each value its names from the widest to the narrowest. Source: Micci-Barreca 2001, section 4 (hierarchies).
    """
    sums, counts, parents = {}, {}, {}
    for chain, value in zip(chains, values, strict=True):
        for parent, name in zip(["", *chain], chain, strict=False):
            sums[name], counts[name], parents[name] = sums.get(name, 0) + value, counts.get(name, 0) + 1, parent
    means = {"": float(np.mean(values))}
    for name in sorted(sums, key=lambda name: (name.count(listings.CATEGORY_SEPARATOR), name)):  # parents first
        means[name] = float((sums[name] + SMOOTHING * means[parents[name]]) / (counts[name] + SMOOTHING))
    return means


def _numbers(text: str, currency: str) -> list[float]:
    """Lengths of text and title, signs of the currency, the largest number of up to five digits, digits."""
    numbers = [float(number) for number in re.findall("[0-9]{1,5}", text)]
    digits = sum(char.isdigit() for char in text)
    return [len(text), len(text.partition("\n")[0]), count_signs(text, currency), max(numbers, default=0), digits]


def _named_prices(text: str, currency: str) -> list[float]:
    """The largest and the smallest amount in the currency that the seller names, as log10, NaN where none; how many."""
    logs = [math.log10(max(amount, 1)) for amount in named_amounts(text, currency)]
    return [max(logs, default=math.nan), min(logs, default=math.nan), len(logs)]


def _cues(text: str) -> list[bool]:
    """Whether the text says each of CUES."""
    words = f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "
    return [f" {cue} " in words for cue in CUES]


def _kind(text: str, path: str) -> int:
    """Which of the margins is meant for a row."""
    if path:
        return 0
    return 1 if text.strip() else 2
