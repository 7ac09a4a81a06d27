"""Evidence -> one ranked, explained list."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marketplace import storage

BACKGROUND_PAIRS = 10_000  # random pairs whose mean cosine is what unrelated listings have


@dataclass(frozen=True)
class Ranker:
    """How much each kind of evidence counts, and the cosine from which similarity counts at all; ranker.json.

    weights: by kind, any positive scale; background: by kind, the mean cosine of unrelated pairs.
    """

    weights: dict[str, float]
    background: dict[str, float]

    def save(self, path: Path) -> None:
        storage.write_json(path, {"weights": self.weights, "background": self.background})

    @classmethod
    def load(cls, path: Path) -> "Ranker":
        return cls(**storage.read_json(path))

    def similarity(self, kind: str, cosines: np.ndarray) -> np.ndarray:
        """Cosines rescaled to [0, 1]: 0 is as alike as two unrelated listings, 1 is the same."""
        background = self.background[kind]
        return np.clip((cosines - background) / (1 - background), 0, 1)

    def rank(self, evidence: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Order candidates by the weighted mean of their evidence.

        evidence: kind -> (N,) in [0, 1], for the kinds that the query has; a candidate without such evidence has 0.
        Returns the order (N,), best first, ties in the given order; the scores (N,) in [0, 1]; and each kind's
        contributions (N,), which add up to the score.
        """
        total = sum(self.weights[kind] for kind in evidence)
        parts = {kind: self.weights[kind] / total * values for kind, values in evidence.items()}
        scores = np.sum(list(parts.values()), axis=0)
        return np.argsort(-scores, kind="stable"), scores, parts


def background_cosine(vectors: np.ndarray, seed: int = 0) -> float:
    """The mean cosine of random pairs of (N, D) unit rows; rows of zeros (texts without a known word) left out."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(len(vectors), size=(BACKGROUND_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    left, right = vectors[pairs[:, 0]], vectors[pairs[:, 1]]
    filled = left.any(axis=1) & right.any(axis=1)
    if not filled.any():
        return 0.0
    # A background of 1 would leave no room for similarity: identical vectors only.
    return float(np.clip(np.einsum("nd,nd->n", left[filled], right[filled]).mean(), 0, 0.99))
