"""The photo model on the nodes of a cluster, which share no disk: its files go there once, and JPEGs with every call."""

import functools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marketplace.cleaning import photos
from marketplace.files import cluster
from marketplace.files.stages import StageError
from marketplace.models import photo_model as model

if TYPE_CHECKING:
    from ray import ObjectRef

CALL_PHOTOS = 64  # on a core: some seconds; a GPU takes a batch a call
CALLS_AHEAD = 3  # for each core or GPU: none waits for the next
GPU_DECODERS = 8  # threads: more would wait for each other's Python


class PhotoModelOnNodes:
    """A photo model that runs elsewhere, in the same runtime and precision on every node.

    description, settings, runtime, precision: as of a model.PhotoModel.
    """

    def __init__(self, model_dir: Path, runtime: str, cores: cluster.Cores, gpus: cluster.Gpus | None):
        """runtime: as PhotoModel's. GPUs run torch in bf16; without them nodes run what this machine's processor would."""
        self._pool, self._device = gpus or cores, None if gpus else "cpu"
        if gpus:
            self.description = model.Description.load(model_dir)
            self.settings = photos.CleanSettings.from_dict(self.description.photo)
            self._asked, self.runtime, self.precision = "torch", "torch", "bf16"
        else:
            here = model.PhotoModel(model_dir, runtime, "cpu")
            self.description, self.settings = here.description, here.settings
            self._asked, self.runtime, self.precision = runtime, here.runtime, here.precision
        names = [model.WEIGHTS] if self.runtime == "torch" else [model.ONNX, model.INT8]
        paths = [model_dir / name for name in (model.DESCRIPTION, *names)]
        self._files = cores.put({path.name: path.read_bytes() for path in paths if path.exists()})

    def run_photos(
        self, images_dir: Path, parts: Sequence[Sequence[str]], batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """model.PhotoModel.run() of the photos of each part, whose nodes see none of this machine's files."""

        def submit(image_ids: Sequence[str]) -> Future:
            jpegs = [(str(images_dir / f"{image_id}.jpg"), photos.load(images_dir, image_id, bytes)) for image_id in image_ids]
            return self._pool.submit(
                run, jpegs, self._files, self._asked, self._device, (self.runtime, self.precision), batch_size
            )

        for _, outputs in cluster.in_order(submit, parts, CALLS_AHEAD * self._pool.count):
            yield outputs


def run(
    jpegs: list[tuple[str, bytes]],
    files: "ObjectRef",
    runtime: str,
    device: str | None,
    expected: tuple[str, str],
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """On a node: (N, D) float32 unit rows and (N, C) category probabilities of N cleaned photos, run in batches.

    jpegs: path, for who is told of a damaged one, and bytes; files: name -> bytes of the model's, as cluster.get() takes them;
    expected: the runtime and precision that every node must have. Raises StageError where this one has another.
    """
    photo_model = _open(files, runtime, device)
    if (photo_model.runtime, photo_model.precision) != expected:
        raise StageError(
            f"the photo model runs in {photo_model.precision} here and in {expected[1]} elsewhere, which gives other vectors: "
            "take the node out of the cluster, or give --device cpu --runtime onnx, which is the same everywhere"
        )

    def read(jpeg: tuple[str, bytes]) -> np.ndarray:
        path, data = jpeg
        try:
            return photo_model.input(data)
        except (OSError, ValueError):
            raise StageError(f"{path} is damaged: run python clean_images.py again") from None

    with ThreadPoolExecutor(1 if device else GPU_DECODERS) as threads:
        batches = (jpegs[start : start + batch_size] for start in range(0, len(jpegs), batch_size))
        outputs = [photo_model.run(np.stack(list(threads.map(read, batch)))) for batch in batches]
    return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))


@functools.lru_cache(maxsize=1)
def _open(files: "ObjectRef", runtime: str, device: str | None) -> model.PhotoModel:
    """The model that this process keeps."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in cluster.get(files).items():
            Path(folder, name).write_bytes(content)
        return model.PhotoModel(Path(folder), runtime, device, threads=1)
