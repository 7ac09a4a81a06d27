"""Rows of clean tables for tests: listings and photos that are unlike each other unless a test says otherwise."""

import numpy as np

NAMES = ["Appliances", "Sofas & Chairs", "Tools"]
UNLIKE = np.random.default_rng(7).integers(0, 2**64, 10_000, dtype=np.uint64)  # hashes; random ones differ in about 32 bits


def product(number: int, label: int | None = None, **columns) -> dict:
    label = number % 3 if label is None else label
    text = {"name": f"Thing {number}", "description": " ".join(f"word{number}x{place}" for place in range(10))}
    return {"product_id": f"p{number:04d}", **text, "category": NAMES[label], "label": label, "price": "5.00"} | columns


def photo(number: int, product_id: str | None = None, **columns) -> dict:
    """A row of photos.csv with the listing it belongs to (by default the one of the same number; "" for none) beside it."""
    hashes = {"sha256": f"{number:064x}", "phash": f"{UNLIKE[number]:016x}", "colours": f"{number % 256:02x}" * 48}
    base = {"image_id": f"i{number:04d}", "product_id": f"p{number:04d}" if product_id is None else product_id}
    return base | {"status": "ok", "reason": "", "width": 32, "height": 32} | hashes | columns
