"""The photo network in 8 bits for CPUs: quantised on training photos, checked on held-out ones. train.py imports it."""

import base64
import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from marketplace.cleaning import photos
from marketplace.files import atomic
from marketplace.models import photo_model

CALIBRATION_PHOTOS, CHECKED_PHOTOS, BATCH = 100, 500, 4
# How many convolutions, from the input on, stay in float: tried in turn until the check passes. An error of the first layers
# goes through all others, most of all in a network of depthwise convolutions, which does without the first choice.
# benchmarks/extract_embeddings.py measures cosines, neighbours kept and speed.
FLOAT_CONVOLUTIONS = (0, 3, 8, 16)
# A convolution's Relu or Clip is told with it, or its output is rounded to the range before the clipping. MaxPool in float would
# have the layout of its input changed, and back.
QUANTISED = ["Conv", "Relu", "Clip", "MaxPool"]
MIN_COSINE, MIN_NEIGHBOURS_KEPT, NEIGHBOURS = 0.99, 0.9, 10


class _Batches(quantization.CalibrationDataReader):
    """The photos in batches, from file to file anew for each range of batches that is asked for."""

    def __init__(self, batches: list[list[str]], read: Callable[[list[str]], np.ndarray]):
        self.batches, self.read = batches, read
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.following = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"pixels": self.read(image_ids)} if (image_ids := next(self.following, None)) else None


def export(model_dir: Path, images_dir: Path, train: pd.DataFrame, validation: pd.DataFrame, seed: int) -> dict:
    """Write photo_model.INT8 beside the fp32 network of `model_dir`, calibrated on train photos; return what the check found.

    train, validation: tables of ListingPhotos (image_id, label), one row or more each, of which a sample is used.
    The report: used (bool), reason (a sentence where it is not used, else None), mean_cosine, neighbours_kept, accuracy,
    fp32_accuracy, photos (number checked), float_convolutions.
    """
    served = photo_model.PhotoModel(model_dir, "onnx")
    calibration, held_out = (
        table.sample(min(len(table), most), random_state=seed)
        for table, most in ((train, CALIBRATION_PHOTOS), (validation, CHECKED_PHOTOS))
    )

    def read(image_ids: list[str]) -> np.ndarray:
        return np.stack([photos.load(images_dir, image_id, served.input) for image_id in image_ids])

    def outputs(path: Path) -> list[np.ndarray]:
        """The vectors, and the logits, of the held-out photos and after them the calibration photos."""
        run = photo_model.open_onnx(path)[0]
        batches = _batches([*held_out["image_id"], *calibration["image_id"]])
        return [np.concatenate(arrays) for arrays in zip(*(run(read(batch)) for batch in batches), strict=True)]

    exact = outputs(model_dir / photo_model.ONNX)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        network = _Quantisable(model_dir / photo_model.ONNX, Path(folder), list(_batches(calibration["image_id"].tolist())), read)
        for in_float in network.choices():
            quantised = network.quantise(in_float)
            report = check(exact, outputs(quantised), held_out["label"].to_numpy()) | {"float_convolutions": in_float}
            if report["used"]:
                break
        probe = photos.load(images_dir, calibration["image_id"].iloc[0], bytes)
        vectors, _ = photo_model.open_onnx(quantised)[0](served.input(probe)[None])
        made = onnx.load(quantised)
    metadata = {photo_model.PROBE_PHOTO: probe, photo_model.PROBE_VECTOR: vectors[0].astype("<f4").tobytes()}
    onnx.helper.set_model_props(made, {name: base64.b64encode(value).decode() for name, value in metadata.items()})
    with atomic.atomic_path(model_dir / photo_model.INT8) as path:
        onnx.save(made, path)
    return report


class _Quantisable:
    """An fp32 network that is prepared in `folder`, to be quantised with one number of convolutions in float or another."""

    def __init__(self, path: Path, folder: Path, batches: list[list[str]], read: Callable[[list[str]], np.ndarray]):
        self.folder, self.reader = folder, _Batches(batches, read)
        quant_pre_process(path, folder / "prepared.onnx", skip_symbolic_shape=True)
        self.convolutions = [node for node in onnx.load(folder / "prepared.onnx").graph.node if node.op_type == "Conv"]
        self.ranges_by = quantization.CalibrationMethod.Percentile

    def choices(self) -> list[int]:
        """Those of FLOAT_CONVOLUTIONS to try."""
        depthwise = any(each.name == "group" and each.i > 1 for node in self.convolutions for each in node.attribute)
        choices = FLOAT_CONVOLUTIONS[1:] if depthwise else FLOAT_CONVOLUTIONS
        return [count for count in choices if count < len(self.convolutions)] or [0]

    def quantise(self, in_float: int) -> Path:
        try:
            return self._quantise(in_float)
        except ValueError as error:
            if "bins" not in str(error):
                raise
        # NumPy finds no bins between the values of a layer that hardly differ, as barely trained ones'.
        self.ranges_by = quantization.CalibrationMethod.MinMax
        return self._quantise(in_float)

    def _quantise(self, in_float: int) -> Path:
        quantization.quantize_static(
            self.folder / "prepared.onnx",
            self.folder / "int8.onnx",
            self.reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=[node.name for node in self.convolutions[:in_float]],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=self.ranges_by,
            calibration_cache_path=self.folder / "ranges.json",
            extra_options={"CalibStridedMinMax": 1},  # batches whose every layer's output is in memory at once
        )
        return self.folder / "int8.onnx"


def check(exact: list[np.ndarray], quantised: list[np.ndarray], labels: np.ndarray) -> dict:
    """What export() reports, of the outputs of both networks: vectors (N, D) and logits (N, C).

    labels: of the first rows, the held-out photos; their neighbours are looked for among all rows.
    """
    held_out = len(labels)
    cosine = float((exact[0] * quantised[0]).sum(1)[:held_out].mean())
    kept = neighbours_kept(exact[0], quantised[0], held_out)
    exact_accuracy, accuracy = (float((logits[:held_out].argmax(1) == labels).mean()) for _, logits in (exact, quantised))
    error = (exact_accuracy * (1 - exact_accuracy) / held_out) ** 0.5
    wanted = {  # figure -> what it is, the least that is asked for
        "mean cosine to fp32": (cosine, MIN_COSINE),
        "share of the fp32 neighbours kept": (kept, MIN_NEIGHBOURS_KEPT),
        "accuracy": (accuracy, exact_accuracy - error),
    }
    return verdict(wanted, "fp32 is used on CPUs, not 8 bits: on held-out photos") | {
        "mean_cosine": round(cosine, 5),
        "neighbours_kept": round(kept, 4),
        "accuracy": round(accuracy, 4),
        "fp32_accuracy": round(exact_accuracy, 4),
        "photos": held_out,
    }


def verdict(wanted: dict[str, tuple[float, float]], otherwise: str) -> dict:
    """Whether 8 bits are to be used, and why not.

    wanted: what was measured, its value, and the least that is asked for; otherwise: how the reason begins.
    Returns used (bool) and reason (a sentence where they are not used, else None).
    """
    short = [
        f"{name} is {value:.4f}, at least {least:.4f} is asked" for name, (value, least) in wanted.items() if not value >= least
    ]
    return {"used": not short, "reason": f"{otherwise} the {' and the '.join(short)}" if short else None}


def neighbours_kept(exact: np.ndarray, quantised: np.ndarray, queries: int) -> float:
    """The share of the NEIGHBOURS nearest rows of each of the first `queries` rows of `exact` that are so in `quantised` too.

    Both (N, D) unit rows of the same photos; a row is no neighbour of itself. 1 when there is no other row.
    """
    nearest = [_nearest(vectors, queries) for vectors in (exact, quantised)]
    if not nearest[0].size:
        return 1.0
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(*nearest, strict=True)]))


def _nearest(vectors: np.ndarray, queries: int) -> np.ndarray:
    cosines = vectors[:queries] @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, : min(NEIGHBOURS, len(vectors) - 1)]


def _batches(image_ids: list[str]) -> Iterator[list[str]]:
    return (image_ids[start : start + BATCH] for start in range(0, len(image_ids), BATCH))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's remarks, which it prints to stdout and logs to the root logger."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
