"""The straightforward way, as most write it, that the other benchmarks measure against: one photo at a time, no tricks."""

import io

import faiss
import numpy as np
from PIL import Image

QUALITY = 90  # as photos.clean, so that the files are as large


def clean(data: bytes, size: int = 256) -> bytes:
    """A photo's bytes -> a JPEG square: decoded at full size, resized bicubically, letterboxed."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = size / max(image.size)
    image = image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    jpeg = io.BytesIO()
    square.save(jpeg, "JPEG", quality=QUALITY)
    return jpeg.getvalue()


def build_index(vectors: np.ndarray) -> faiss.Index:
    """Every vector compared with every query."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index
