"""The straightforward way, as most write it, that the other benchmarks measure against: one photo at a time, no tricks.

torch is imported where it is used: benchmarks of memory import this module too.
"""

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


def embedder(backbone: str = "resnet50", size: int = 224):
    """A function from a cleaned JPEG to its (D,) float32 unit vector: torchvision's network in fp32, NCHW, a batch of one."""
    import torch
    from torchvision import models, transforms

    network = models.get_model(backbone, weights=None)
    network.fc = torch.nn.Identity()
    network.eval()
    transform = transforms.Compose(
        [
            transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    @torch.inference_mode()
    def embed(jpeg: bytes) -> np.ndarray:
        features = network(transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))[None])[0].numpy()
        return features / np.linalg.norm(features)

    return embed


def build_index(vectors: np.ndarray) -> faiss.Index:
    """Every vector compared with every query."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index
