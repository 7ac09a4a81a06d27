"""recommend.py beside one client that asks GET /products/{product_id}/similar for one listing after the other.

Reads   a finished data folder (make demo), whose models, and whose words for made-up listings, are used; or with --index as it is
Run     python benchmarks/recommend.py           100,000 listings, 1,000 of which are asked for by HTTP: three minutes
        python benchmarks/recommend.py --quick   20,000
        python benchmarks/recommend.py --index DATA

Both give the same answers, which is checked. The client keeps its connection; the service runs as by default, one process, and
recommend.py too: a process a core. What else the machine does changes the figures by the clock more than those by CPU time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import results
from serving import DIMENSION, ROOT, Client, Server, clustered, make_products, show, write_generation

sys.path.insert(0, str(ROOT))
from marketplace.cleaning import listings as table
from marketplace.files import generations
from marketplace.retrieval.catalogue import Catalogue

PORT = 8097
BY_HTTP = 1000  # listings that the client asks for
WARM = 50
K = 10


@dataclass(frozen=True)
class Measured:
    """seconds, cpu_ms: a listing's, of all processes that take part; answers: by id."""

    seconds: float
    cpu_ms: float
    answers: dict[str, list]


def by_http(data_dir: Path, ids: list[str]) -> Measured:
    answers = {}
    with Server(data_dir, PORT) as server:
        client = Client(PORT)
        for one in ids[:WARM]:
            client.get(f"/products/{one}/similar?k={K}")
        started_s, started_cpu_s = time.perf_counter(), time.process_time() + server.cpu_s()
        for one in ids:
            answers[one] = json.loads(client.get(f"/products/{one}/similar?k={K}")[2])["results"]
        cpu_s = time.process_time() + server.cpu_s() - started_cpu_s
        return Measured((time.perf_counter() - started_s) / len(ids), 1000 * cpu_s / len(ids), answers)


def in_bulk(data_dir: Path, ids: list[str]) -> Measured:
    """The start of its processes is counted."""
    (data_dir / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "recommend.py"), "--data", str(data_dir), "--ids", str(data_dir / "ids.txt")]
    started_s, started_cpu_s = time.perf_counter(), children_cpu_s()
    subprocess.run([*command, "--k", str(K)], check=True, stdout=subprocess.DEVNULL)
    seconds, cpu_s = time.perf_counter() - started_s, children_cpu_s() - started_cpu_s
    answers: dict[str, list] = {}
    with (data_dir / "recommendations" / "similar.jsonl").open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            answers.setdefault(record["id"], []).append(record)
    return Measured(seconds / len(ids), 1000 * cpu_s / len(ids), answers)


def children_cpu_s() -> float:
    """CPU seconds of the processes that ended and were started from here, and of those that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def same(served: list[dict], written: list[dict]) -> bool:
    fields = ("score", "parts")
    return [(one["product_id"], *(one[field] for field in fields)) for one in served] == [
        (one["similar_id"], *(one[field] for field in fields)) for one in written
    ]


def measure(data_dir: Path) -> dict:
    catalogue = Catalogue(generations.current_generation(data_dir / "index"))
    listings = catalogue.products(range(catalogue.n_products), ["product_id"])
    order = np.random.default_rng(0).permutation(len(listings))
    ids = [listings[row]["product_id"] for row in order]
    del catalogue
    first = by_http(data_dir, ids[:BY_HTTP])
    bulk = in_bulk(data_dir, ids)
    last = by_http(data_dir, ids[:BY_HTTP])
    served, written = first.answers, bulk.answers
    assert all(same(served[one], written.get(one, [])) for one in served), "the two do not give the same answers"
    http_s, http_cpu_ms = (first.seconds + last.seconds) / 2, (first.cpu_ms + last.cpu_ms) / 2  # around the other
    return {
        "listings": len(listings),
        "asked_by_http": len(served),
        "http_a_second": round(1 / http_s, 1),
        "bulk_a_second": round(1 / bulk.seconds, 1),
        "times_as_many": round(http_s / bulk.seconds, 2),
        "http_cpu_ms": round(http_cpu_ms, 2),
        "bulk_cpu_ms": round(bulk.cpu_ms, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--index", type=Path, help="a data folder whose index is asked as it is (default: one is made up)")
    parser.add_argument("--quick", action="store_true", help="20,000 listings")
    args = parser.parse_args()
    rows = 20_000 if args.quick else 100_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.index is not None:
            (folder / "index").symlink_to((args.index / "index").absolute())
        else:
            source = generations.current_generation(args.data / "index")
            real = table.read_products(args.data / "tabular")
            write_generation(folder / "index", source, make_products(real, rows), clustered(rows, DIMENSION, seed=1))
        figures = measure(folder)
    if not args.quick and args.index is None:
        results.save("recommend", figures, results.command(args.data))
    return show(figures)


if __name__ == "__main__":
    sys.exit(main())
