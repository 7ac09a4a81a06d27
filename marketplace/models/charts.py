"""The curves of training, for a person at the terminal, TensorBoard and a PNG file; a confusion matrix as a PNG file."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np


class Curves:
    """What each epoch measured, kept for metrics.json and curves.png, printed, and shown in TensorBoard."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.epochs: list[dict[str, float]] = []
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(folder)

    def add(self, **values: float) -> None:
        self.epochs.append({"epoch": len(self.epochs) + 1} | {name: round(value, 6) for name, value in values.items()})
        for name, value in values.items():
            self._writer.add_scalar(name, value, len(self.epochs))
        measured = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"epoch {len(self.epochs)}  {measured}", file=sys.stderr)

    def close(self) -> None:
        self._writer.close()


def draw_curves(epochs: list[dict[str, float]]) -> bytes:
    """Losses and accuracy by epoch, from metrics.json's epochs."""
    figure, (left, right) = _figure(1, 2, (9, 3.5))
    steps = [epoch["epoch"] for epoch in epochs]
    left.plot(steps, [epoch["train_loss"] for epoch in epochs], label="training")
    left.plot(steps, [epoch["validation_loss"] for epoch in epochs], label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    right.plot(steps, [epoch["validation_accuracy"] for epoch in epochs], color="tab:orange")
    right.set(xlabel="epoch", ylabel="validation accuracy, by listing", ylim=(0, 1))
    return _png(figure)


def draw_confusion(labels: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> bytes:
    """How many test listings (of labels (L,), probabilities (L, C)) of each category are called each; colour: the share of it."""
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    size_inches = 3.5 + 0.38 * len(classes)
    figure, axes = _figure(1, 1, (size_inches + 1.5, size_inches))
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, confusion[row, column], ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Test listings, photo model")
    return _png(figure)


def _figure(rows: int, columns: int, size_inches: tuple[float, float]):
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(size_inches, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
