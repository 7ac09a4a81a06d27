"""Evidence -> one ranked, explained list."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from marketplace.files import atomic, reading
from marketplace.retrieval import typed_search

KINDS = ("photo", "text", "words", "category", "price", "place")
MIXES = ("photo", "words")  # a query without words, and one with: its photo, and the category that it tells, weigh differently
BY_HAND = {"photo": 1.0, "text": 0.5, "words": 0.5, "category": 0.5, "price": 0.1, "place": 0.05}  # before there is a fit
SAME_PHOTO = 0.9  # a similarity, from which on a photo is more and more the very one that was given, saved again
CURVES = (*MIXES, "typed", "sentence")  # whose raw scores have scales of their own
UNCALIBRATED = {
    **dict.fromkeys(MIXES, [[0.0, 1.0], [0.0, 1.0]]),
    "typed": [[0.0, typed_search.HIGHEST], [0.0, 1.0]],
    "sentence": [[0.0, typed_search.SENTENCE_HIGHEST], [0.0, 1.0]],
}


@dataclass(frozen=True)
class Ranker:
    """How much each kind of evidence counts; ranker.json.

    weights: "words" for queries with words and "photo" for those without -> by kind, any positive scale. missing: likewise, in
    [0, 1], what is assumed where a candidate has no such evidence (no photo, no price). background: by kind, the mean cosine of
    unrelated pairs, from which similarity counts at all. calibration: of each of CURVES raw scores, ascending, and the
    probability that a shopper finds right what scores so, between them straight.
    """

    weights: dict[str, dict[str, float]]
    missing: dict[str, dict[str, float]]
    background: dict[str, float]
    calibration: dict[str, list[list[float]]] = field(default_factory=lambda: dict(UNCALIBRATED))

    @classmethod
    def by_hand(cls, background: dict[str, float]) -> "Ranker":
        """What ranks before there is a fit."""
        return cls(dict.fromkeys(MIXES, BY_HAND), dict.fromkeys(MIXES, dict.fromkeys(KINDS, 0.0)), background)

    def save(self, path: Path) -> None:
        atomic.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        return cls(**reading.read_json(path))

    def similarity(self, kind: str, cosines: np.ndarray) -> np.ndarray:
        """Cosines rescaled to [0, 1]: 0 is as alike as two unrelated listings, 1 is the same; NaN stays."""
        background = self.background[kind]
        return np.clip((cosines - background) / (1 - background), 0, 1)

    def rank(self, evidence: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Order candidates by the weighted mean of their evidence; one with the very photo that was given, and nothing but that,
        comes before any other, whatever category the photo seems to be of.

        evidence: kind -> (N,) in [0, 1], for the kinds that the query has; NaN for a candidate without such evidence.
        Returns the order (N,), best first, ties in the given order; the scores (N,), calibrated; and each kind's contributions
        (N,), which add up to the score. Kinds that count nothing are left out.
        """
        weights, missing = (values[mix_of(evidence)] for values in (self.weights, self.missing))
        counted = {kind: values for kind, values in evidence.items() if weights[kind] > 0}
        total = sum(weights[kind] for kind in counted)
        parts = {
            kind: weights[kind] / total * np.where(np.isnan(values), missing[kind], values) for kind, values in counted.items()
        }
        if mix_of(evidence) == "photo" and "photo" in parts:
            alike = np.nan_to_num(evidence["photo"])
            parts["photo"] = parts["photo"] + np.clip((alike - SAME_PHOTO) / (1 - SAME_PHOTO), 0, 1)
        return self._calibrated(mix_of(evidence), parts)

    def rank_typed(self, parts: dict[str, np.ndarray], is_sentence: bool) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Likewise of what typed words add to each candidate's raw score."""
        return self._calibrated("sentence" if is_sentence else "typed", parts)

    def _calibrated(self, curve: str, parts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        raw = np.sum(list(parts.values()), axis=0)
        something = raw > 1e-9  # what nothing speaks for has no parts that could add up to a score
        scores = np.where(something, np.interp(raw, *self.calibration[curve]), 0)
        share = scores / np.where(something, raw, 1)
        return np.argsort(-raw, kind="stable"), scores, {kind: share * values for kind, values in parts.items()}


def mix_of(evidence: dict[str, np.ndarray]) -> str:
    """The one of MIXES by which a query with some kinds of evidence is ranked."""
    return "words" if "words" in evidence or "text" in evidence else "photo"
