"""What cleaning photos over Ray costs on one machine, beside the pool of processes with as many cores.

Reads   drawn photos of demo.sample
Run     python benchmarks/cluster.py      (--quick: fewer photos; it needs requirements-ray.txt)
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import results

from demo import sample
from marketplace.cleaning import photos, pool
from marketplace.cleaning.sources import Photo
from marketplace.files import cli, cluster

ROUNDS = 3


def tasks(folder: Path, count: int) -> list[pool.Task]:
    """`count` photos, the drawn ones over and over."""
    sample.write(folder)
    paths = sorted((folder / "images").glob("*.jpg"))
    paths = (paths * -(-count // len(paths)))[:count]
    return [pool.Task(Photo(path.name, str(path), "", path.stat().st_size), "") for path in paths]


def seconds(todo: list[pool.Task], nodes: cluster.Cores | None) -> float:
    began = time.perf_counter()
    for _ in pool.clean_all(todo, None, photos.DEFAULTS, True, cli.cores(), nodes):
        pass
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer photos, and rougher")
    args = parser.parse_args()
    count = 400 if args.quick else 3000
    with tempfile.TemporaryDirectory() as temporary:
        todo = tasks(Path(temporary), count)
        began = time.perf_counter()
        with cluster.connect("local") as nodes:
            start_s = time.perf_counter() - began
            seconds(todo[:100], nodes)  # its processes and their decoders start
            # In turns, so that what else the machine does meets both alike.
            rounds = [(seconds(todo, None), seconds(todo, nodes)) for _ in range(ROUNDS)]
    ours, rays = (min(each) for each in zip(*rounds, strict=True))
    figures = {
        "cores": cli.cores(),
        "photos": count,
        "pool_photos_per_s": round(count / ours, 1),
        "ray_photos_per_s": round(count / rays, 1),
        "ray_vs_pool": round(rays / ours, 2),
        "ray_start_s": round(start_s, 1),
    }
    print(*(f"{value:10}  {name}" for name, value in figures.items()), sep="\n", file=sys.stderr)
    if not args.quick:
        print(f"wrote {results.save('cluster', figures, results.command())}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
