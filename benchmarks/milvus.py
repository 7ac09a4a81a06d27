"""What a search costs in Milvus, beside the FAISS index of the same vectors in this process.

The vectors are those of benchmarks/search.py; each has a price, by which the filters leave a share of them. One query at a time.

Run     python benchmarks/milvus.py milvus://localhost:19530     100,000 vectors (--quick: 25,000); it needs
        requirements-milvus.txt, and makes and drops a collection of the name "benchmark"
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import search  # before NumPy and FAISS begin their threads

from marketplace.retrieval import milvus
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.filters import Conditions, Passing

ROWS, QUICK_ROWS = 100_000, 25_000
SHARES = {"all": 1.0, "tenth": 0.1, "hundredth": 0.01}  # that a filter leaves


def below(price: np.ndarray, share: float) -> Passing:
    """The cheapest: a filter as Milvus knows it and as FAISS does."""
    most = float(np.quantile(price, share))
    return Passing(price <= np.float32(most), lambda: Conditions(max_price=most))


def measure(rows: int, uri: str, folder: Path) -> dict:
    search.write_vectors(folder / "vectors.npy", rows + search.QUERIES, None)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    vectors, queries = vectors[:rows], np.array(vectors[rows:])
    price, keys = np.random.default_rng(1).uniform(0, 1000, rows).astype(np.float32), np.arange(rows)
    server = milvus.Server.parse(f"{uri.rstrip('/')}/benchmark")
    collection = server.collection("0" * 12, "photos")
    place = milvus.write(server, collection, vectors, keys, {"price": price})
    try:
        engines: dict[str, vector_search.Vectors] = {
            "faiss": vector_search.VectorIndex(vector_search.build(vectors), vectors),
            "milvus": milvus.MilvusIndex(server, place, keys),
        }
        found = {"rows": rows, "indexes": {engine: index.describe()["kind"] for engine, index in engines.items()}}
        found |= {engine: {} for engine in engines}
        for name, share in SHARES.items():
            passing = None if share == 1 else below(price, share)
            truth = search.exact(vectors, queries, None if passing is None else passing.rows)
            for engine, index in engines.items():
                nearest = functools.partial(index.nearest, k=search.K, passing=passing)
                times, rows_found = search.timed(lambda query, nearest=nearest: nearest(query)[0], queries)
                figures = {"p50_ms": round(times["p50_ms"], 2), "p99_ms": round(times["p99_ms"], 2)}
                found[engine][name] = figures | {"recall": round(search.recall(rows_found, truth), 4)}
        return found
    finally:
        server.client().drop_collection(collection)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri", type=milvus.uri, help="milvus://host:port of a server")
    parser.add_argument("--quick", action="store_true", help="fewer vectors, and rougher")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="marketplace-benchmark-") as folder:
        found = measure(QUICK_ROWS if args.quick else ROWS, args.uri, Path(folder))
    print(json.dumps(found, indent=1), file=sys.stderr)
    if not args.quick:
        path = search.results.save("milvus", found, "python benchmarks/milvus.py milvus://HOST")
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
