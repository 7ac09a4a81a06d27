"""What vector search costs against the catalogue's size: time, recall, memory, filters and updates, beside a flat index, hnswlib
and usearch.

The vectors are 20,000 Gaussian centres plus 0.6 sigma, 256-d, seed 0, normalised; the queries, of the same kind, are not in the
index. One query at a time, on one thread. Below 200,000 vectors a centre has fewer than ten: most of a query's nearest neighbours
are then its nearest by chance, all over the space, and lists help little. So real photos' vectors are measured too, where a
folder of them is given: each many times, plus 0.6 of the difference of two others.

Reads   the vectors of a finished data folder's photos (--embeddings data/embeddings)
Run     python benchmarks/search.py                        (--quick: under a minute; --no-peers leaves the other libraries out)
        python benchmarks/search.py --plot docs/search.png --embeddings data/embeddings
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and FAISS are imported

import faiss
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import baseline
import results

from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.filters import Passing

SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (2_500, 25_000)
DIMENSION, CENTRES, SIGMA = 256, 20_000, 0.6
REAL_SHIFT = 0.6  # of the difference of two real vectors: then two of one origin are a little nearer than a real one's nearest
K = 10
QUERIES, FLAT_QUERIES = 200, 50
BLOCK = 50_000
CHANGED = 0.01  # of the rows removed, and as many added, by an update
KEPT_SHARES = (0.5, 0.1, 0.01, 0.001)  # by a filter
FEW_ROWS = 10  # kept by the narrowest one
# Of the graphs: M, and the efConstruction at which 1,000,000 vectors take about as long with both: 5 to 10 minutes on 2 cores.
PEER_LINKS, HNSWLIB_EXPANSION, USEARCH_EXPANSION = 16, 100, 64
FILES = vector_search.FILES["photos"]
context = multiprocessing.get_context("spawn")


def write_vectors(path: Path, rows: int, real: np.ndarray | None) -> None:
    """Unit rows drawn around centres, or around real vectors."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, DIMENSION), np.float32) if real is None else real
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (rows, centres.shape[1]))
    for start in range(0, rows, BLOCK):
        block = vectors[start : start + BLOCK]
        block[:] = centres[generator.integers(len(centres), size=len(block))]
        if real is None:
            block += np.float32(SIGMA) * generator.standard_normal(block.shape, np.float32)
        else:
            left, right = generator.integers(len(real), size=(2, len(block)))
            block += np.float32(REAL_SHIFT) * (real[left] - real[right])
        block /= np.linalg.norm(block, axis=1, keepdims=True)


def exact(vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None = None) -> list[set[int]]:
    """The rows of each query's K nearest, by NumPy."""
    passing = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    rows, cosines = np.empty((len(queries), 0), int), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(passing), BLOCK):
        block = passing[start : start + BLOCK]
        cosines = np.hstack([cosines, queries @ vectors[block].T])
        rows = np.hstack([rows, np.broadcast_to(block, (len(queries), len(block)))])
        best = np.argsort(-cosines)[:, :K] if len(block) < K else np.argpartition(-cosines, K - 1)[:, :K]
        rows, cosines = np.take_along_axis(rows, best, 1), np.take_along_axis(cosines, best, 1)
    return [set(found) for found in rows.tolist()]


def recall(found: list[np.ndarray], truth: list[set[int]]) -> float:
    return sum(len(near & set(rows.tolist())) for rows, near in zip(found, truth, strict=True)) / sum(map(len, truth))


def timed(search_one: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> tuple[dict[str, float], list[np.ndarray]]:
    """p50 and p99 in milliseconds, and the rows found; the first queries only warm the caches."""
    for query in queries[:20]:
        search_one(query)
    times_ms, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search_one(query))
        times_ms.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": float(np.percentile(times_ms, 50)), "p99_ms": float(np.percentile(times_ms, 99))}, found


# In processes of their own, whose memory is theirs alone


def in_process(function: Callable[..., dict], *arguments) -> dict:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()  # so that a process that dies ends the wait
    result = receiver.recv()
    process.join()
    return result


def _send(sender, function: Callable[..., dict], arguments: tuple) -> None:
    sender.send(function(*arguments))


def memory_mb(fields: tuple[str, ...], file: str = "smaps_rollup") -> float:
    """The sum of such fields of /proc/self: Pss, Private_Dirty; VmRSS and its peak, VmHWM, of "status"."""
    with open(f"/proc/self/{file}", encoding="ascii") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith(fields)) / 1024


def build(folder: Path) -> dict:
    vectors, keys = (np.load(folder / name, mmap_mode="r") for name in (FILES.vectors, FILES.keys))
    before, start = memory_mb(("VmRSS",), "status"), time.perf_counter()
    index = vector_search.build(vectors, keys=keys)
    faiss.write_index(index, str(folder / FILES.index))
    seconds = time.perf_counter() - start
    peak_mb = memory_mb(("VmHWM",), "status") - before  # the pages of the vectors that were read included
    return vector_search.describe(index) | {"build_s": seconds, "peak_over_raw": peak_mb * 2**20 / vectors.nbytes}


def update(folder: Path, vectors_path: Path) -> dict:
    """Vectors that go, spread over the index, and as many that come."""
    keys = np.load(folder / FILES.keys)
    changed = int(CHANGED * len(keys))
    everything = np.load(vectors_path, mmap_mode="r")[: len(keys) + changed]
    gone = np.arange(0, len(keys), len(keys) // changed)[:changed]
    came = np.arange(len(keys), len(everything))
    keys_after = np.append(np.delete(keys, gone), keys.max() + 1 + np.arange(changed))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        start = time.perf_counter()
        vector_search.update(folder / FILES.index, Path(name) / FILES.index, keys[gone], everything[came], keys_after[-changed:])
        seconds = time.perf_counter() - start
        index = vector_search.VectorIndex(
            vector_search.read(Path(name) / FILES.index, mapped=True), np.delete(everything, gone, axis=0), keys_after
        )
        return {"update_s": seconds, "updated_recall": vector_search.measure(index, index.vectors)["recall_at_10"]}


def serve(folder: Path, barrier) -> dict:
    """What one of several workers that serve the same files adds to its memory."""
    fields = {"Rss": ("Rss",), "Pss": ("Pss:",), "private": ("Private_Clean", "Private_Dirty")}
    before = {name: memory_mb(wanted) for name, wanted in fields.items()}
    index = vector_search.VectorIndex.open(folder, FILES)
    for row in range(0, len(index.vectors), len(index.vectors) // QUERIES):
        index.nearest(index.vectors[row], K)
    barrier.wait()
    after = {name: memory_mb(wanted) - before[name] for name, wanted in fields.items()}
    barrier.wait()
    return after


def two_workers(folder: Path) -> dict:
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        return pool.starmap(serve, [(folder, barrier)] * 2)[0]


# Others


def other_codes(index: faiss.IndexIVF, vectors: np.ndarray) -> dict[str, Callable]:
    """The same lists holding other codes, searched like ours."""
    others = {
        "IVF,Flat": faiss.IndexIVFFlat(index.quantizer, index.d, index.nlist, faiss.METRIC_INNER_PRODUCT),
        "IVF,SQ4": faiss.IndexIVFScalarQuantizer(
            index.quantizer, index.d, index.nlist, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT
        ),
    }
    for other in others.values():
        other.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // 20_000)]))
        other.add(vectors)
        other.nprobe = index.nprobe
    return others


def tuned(
    search_with: Callable[[int], Callable[[np.ndarray], np.ndarray]],
    queries: np.ndarray,
    truth: list[set[int]],
    wanted: float,
    most_ms: float,
) -> dict[str, float]:
    """A graph's figures at the least ef of those tried that reaches the recall, or at which a search takes `most_ms`.

    search_with: sets ef, gives the search.
    """
    ef = 4 * K
    while True:
        times, found = timed(search_with(ef), queries)
        if (reached := recall(found, truth)) >= wanted or times["p50_ms"] >= most_ms:
            return times | {"recall": reached, "setting": f"ef {ef}"}
        ef = int(1.4 * ef)


def hnswlib_figures(
    vectors: np.ndarray, queries: np.ndarray, truth: list[set[int]], wanted: float, most_ms: float, path: Path
) -> dict:
    import hnswlib

    start = time.process_time()
    graph = hnswlib.Index("ip", vectors.shape[1])
    graph.init_index(len(vectors), ef_construction=HNSWLIB_EXPANSION, M=PEER_LINKS)
    graph.add_items(vectors, num_threads=os.cpu_count())
    seconds = time.process_time() - start
    graph.save_index(str(path))
    graph.set_num_threads(1)

    def search_with(ef: int) -> Callable[[np.ndarray], np.ndarray]:
        graph.set_ef(ef)
        return lambda query: graph.knn_query(query, K)[0][0]

    bytes_each = path.stat().st_size / len(vectors)
    return tuned(search_with, queries, truth, wanted, most_ms) | {"bytes": bytes_each, "build_s": seconds}


def usearch_figures(
    vectors: np.ndarray, queries: np.ndarray, truth: list[set[int]], wanted: float, most_ms: float, path: Path
) -> dict:
    from usearch.index import Index

    start = time.process_time()
    # Half precision takes two thirds of single's time to build with, and finds the same neighbours.
    graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=PEER_LINKS, expansion_add=USEARCH_EXPANSION)
    graph.add(np.arange(len(vectors)), vectors, threads=os.cpu_count())
    seconds = time.process_time() - start
    graph.save(str(path))

    def search_with(ef: int) -> Callable[[np.ndarray], np.ndarray]:
        graph.expansion_search = ef
        return lambda query: graph.search(query, K, threads=1).keys

    bytes_each = path.stat().st_size / len(vectors)
    return tuned(search_with, queries, truth, wanted, most_ms) | {"bytes": bytes_each, "build_s": seconds}


# The measurements


def compare(rows: int, folder: Path, peers: bool, real: np.ndarray | None) -> dict[str, dict]:
    """Each way's figures at one size; ours, "build_index.py", with the peak of its build and the time of an update."""
    drawn_path, served = folder / f"{rows} drawn.npy", folder / f"{rows} served"
    write_vectors(drawn_path, rows + int(CHANGED * rows) + QUERIES, real)
    everything = np.load(drawn_path, mmap_mode="r")
    vectors, queries = everything[:rows], np.array(everything[-QUERIES:])
    served.mkdir()
    np.save(served / FILES.vectors, vectors)
    np.save(served / FILES.keys, np.sort(np.random.default_rng(2).choice(2**62, rows)))
    truth = exact(vectors, queries)
    ways: dict[str, dict] = {}

    ours = in_process(build, served)
    ours |= in_process(update, served, drawn_path)
    ours["worker"] = two_workers(served)
    index = vector_search.VectorIndex.open(served, FILES)
    times, found = timed(lambda query: index.nearest(query, K)[0], queries)
    ours |= times | {"recall": recall(found, truth), "bytes": (served / FILES.index).stat().st_size / rows}
    ours["setting"] = ours["kind"] + (f" nprobe {ours['nprobe']}" if ours["nprobe"] else "")
    ways["build_index.py"] = ours

    flat = baseline.build_index(vectors)
    times, found = timed(lambda query: flat.search(query[None], K)[1][0], queries[:FLAT_QUERIES])
    ways["flat"] = times | {"recall": recall(found, truth[:FLAT_QUERIES]), "bytes": 4 * flat.d, "setting": ""}
    if isinstance(index.index, faiss.IndexIVF):
        for name, other in other_codes(index.index, vectors).items():
            searched = vector_search.VectorIndex(other, vectors)
            times, found = timed(lambda query: searched.nearest(query, K)[0], queries)  # noqa: B023
            size = other.code_size + 8 + 4 * other.d * other.nlist / rows
            ways[name] = times | {"recall": recall(found, truth), "bytes": size, "setting": f"nprobe {other.nprobe}"}
    if peers:
        for name, figures in {"hnswlib": hnswlib_figures, "usearch": usearch_figures}.items():
            ways[name] = figures(vectors, queries, truth, ours["recall"], ways["flat"]["p50_ms"], folder / f"{rows} peer")
    return ways


def filtered(rows: int, folder: Path) -> list[dict]:
    """Searches under filters; their time includes reading the memory-mapped column."""
    index = vector_search.VectorIndex.open(folder / f"{rows} served", FILES)
    queries = np.array(np.load(folder / f"{rows} drawn.npy", mmap_mode="r")[-QUERIES:])
    np.save(folder / "price.npy", np.random.default_rng(1).permutation(rows).astype(np.float32))
    prices = np.load(folder / "price.npy", mmap_mode="r")
    results = []
    for kept in [int(share * rows) for share in KEPT_SHARES] + [FEW_ROWS]:
        times, found = timed(lambda query: index.nearest(query, K, Passing(prices < kept))[0], queries)  # noqa: B023
        assert all(len(hits) == min(K, kept) and (prices[hits] < kept).all() for hits in found)
        results.append({"kept": kept, "recall": recall(found, exact(index.vectors, queries, prices < kept))} | times)
    listings = np.arange(rows) // 2
    for passing in (None, Passing(prices < 2 * K)):
        groups = [index.nearest_groups(query, K, listings, passing) for query in queries[:50]]
        assert all(len(set(found.tolist())) == K for found in groups)
    return results


def show(rows: int, ways: dict[str, dict]) -> None:
    print(f"\n{rows:,} vectors    p50 ms    p99 ms  recall@10  bytes each  build s", file=sys.stderr)
    for name, way in ways.items():
        seconds = f"{way['build_s']:8.1f}" if "build_s" in way else " " * 8
        figures = f"{way['p50_ms']:9.3f} {way['p99_ms']:9.3f} {way['recall']:10.3f} {way['bytes']:11.0f} {seconds}"
        print(f"{name:16s} {figures}  {way['setting']}", file=sys.stderr)
    ours = ways["build_index.py"]
    worker = ", ".join(f"{name} {mb:.0f}" for name, mb in ours["worker"].items())
    print(
        f"build's peak {ours['peak_over_raw']:.2f} x the vectors; update of 1% {ours['update_s']:.2f} s, recall after it "
        f"{ours['updated_recall']:.3f}; each of two workers, MB: {worker}",
        file=sys.stderr,
    )


def plot(by_size: dict[int, dict[str, dict]], path: Path) -> None:
    figure, (times, sizes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(name for ways in by_size.values() for name in ways if not name.startswith("IVF")):
        points = [(rows, ways[name]) for rows, ways in by_size.items() if name in ways]
        xs, width = [rows for rows, _ in points], 3 if name == "build_index.py" else 1.5
        times.loglog(xs, [way["p50_ms"] for _, way in points], marker="o", linewidth=width, label=name)
        sizes.loglog(xs, [way["bytes"] * rows / 2**20 for rows, way in points], marker="o", linewidth=width, label=name)
    times.set(xlabel="vectors of 256", ylabel="ms a query (p50, one thread)", title="Time at equal recall")
    sizes.set(xlabel="vectors of 256", ylabel="MB of index", title="Memory")
    times.legend()
    figure.savefig(path, dpi=120)


def measure(sizes: tuple[int, ...], peers: bool, real: np.ndarray | None) -> tuple[dict[str, float], dict[int, dict[str, dict]]]:
    """The figures to keep, and each way's by size."""
    by_size = {}
    with tempfile.TemporaryDirectory() as name:
        for rows in sizes:
            by_size[rows] = compare(rows, Path(name), peers, real)
            show(rows, by_size[rows])
        filters = filtered(rows, Path(name))
    print(f"\n{rows:,} vectors, rows a filter keeps    p50 ms    p99 ms  recall@10", file=sys.stderr)
    for result in filters:
        print(f"{result['kept']:40,} {result['p50_ms']:9.3f} {result['p99_ms']:9.3f} {result['recall']:10.4f}", file=sys.stderr)
    *_, before, largest = by_size.values()
    ours = largest["build_index.py"]
    exactly = [result["recall"] for result in filters if result["kept"] <= 0.01 * rows]
    figures = {
        "vectors": rows,
        "recall_at_10": ours["recall"],
        "flat_p50_over_p50": largest["flat"]["p50_ms"] / ours["p50_ms"],
        "flat_p50_over_p50_100k": before["flat"]["p50_ms"] / before["build_index.py"]["p50_ms"],
        "bytes_per_vector": ours["bytes"],
        "p50_1m_over_100k": ours["p50_ms"] / before["build_index.py"]["p50_ms"],
        "filtered_recall_min": min(result["recall"] for result in filters),
        "filtered_recall_min_to_1_percent": min(exactly),
        "filtered_p99_over_p99": max(result["p99_ms"] for result in filters) / ours["p99_ms"],
        "build_peak_over_raw": ours["peak_over_raw"],
        "update_over_build": ours["update_s"] / ours["build_s"],
        "updated_recall": ours["updated_recall"],
        "worker_private_mb": ours["worker"]["private"],
    }
    return {name: round(value, 4) for name, value in figures.items()}, by_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at 2,500 and 25,000 vectors only")
    parser.add_argument("--no-peers", action="store_true", help="leave hnswlib and usearch out: their graphs take longest")
    parser.add_argument("--plot", type=Path, help="write a picture of cost against size here")
    parser.add_argument("--embeddings", type=Path, help="a folder of photos' vectors, vectors.npy, to measure with too")
    args = parser.parse_args()
    if not args.no_peers:
        try:
            import hnswlib  # noqa: F401
            import usearch  # noqa: F401
        except ImportError:
            sys.exit("error: hnswlib and usearch are measured beside it: pip install hnswlib usearch, or give --no-peers")
    sizes = QUICK_SIZES if args.quick else SIZES
    figures, by_size = measure(sizes, not args.no_peers, None)
    if args.plot:
        plot(by_size, args.plot)
    if args.embeddings:
        print("\nReal photos' vectors, perturbed", file=sys.stderr)
        real, _ = measure(sizes, False, np.load(args.embeddings / "vectors.npy"))
        figures |= {f"real_{name}": value for name, value in real.items()}
    print(json.dumps(figures))
    if not args.quick:
        p50_ms = {rows: {name: round(way["p50_ms"], 3) for name, way in ways.items()} for rows, ways in by_size.items()}
        results.save("search", figures | {"p50_ms": p50_ms}, results.command(args.embeddings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
