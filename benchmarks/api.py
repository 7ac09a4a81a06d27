"""What HTTP costs: latency and CPU beside the same work in process, queries a second at 100,000 listings, and mixed load.

Reads   a finished data folder (make demo), whose photo network is replaced by a ResNet-50 of random weights: speed is the same
Run     python benchmarks/api.py --quick
        python benchmarks/api.py --minutes 10     and then mixed load, a new generation every 20 seconds
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import results
from serving import (
    DIMENSION,
    ROOT,
    Client,
    Server,
    clustered,
    load,
    make_products,
    percentile_ms,
    renamed_generation,
    show,
    write_generation,
)

sys.path.insert(0, str(ROOT))
from marketplace.cleaning import listings
from marketplace.cleaning.photos import clean
from marketplace.files import generations
from marketplace.models import photo_model

CLIENTS = 32
PUBLISH_S = 20
SETTLED_S = 60  # after which memory is taken as what the service needs


def resnet50(source: Path, folder: Path) -> dict[str, Path]:
    """The photo model's files with a ResNet-50 of random weights in place of the network of `source`."""
    from marketplace.models import backbone

    description = photo_model.Description.load(source)
    resnet = backbone.build("resnet50", "none", len(description.classes), 224).eval()
    backbone.export_onnx(resnet, 224, folder / photo_model.ONNX)
    plain = {
        "backbone": "resnet50",
        "weights": "none",
        "input_size": 224,
        "dimension": 2048,
        "projection": "none",
        "int8": None,  # that of `source` is of another network
    }
    replace(description, **plain).save(folder)
    return {name: folder / name for name in (photo_model.ONNX, photo_model.DESCRIPTION)}


def measure_photos(data_dir: Path, port: int, photos: list[bytes], queries: int) -> dict:
    """One client and many clients against the same work in this process, in turns."""
    from marketplace.retrieval.recommender import Recommender

    recommender = Recommender(generations.current_generation(data_dir / "index"))

    def in_process(photo: bytes) -> None:
        vector, probabilities = recommender.embed(clean(photo, recommender.photo_model.settings).jpeg)
        recommender.recommend(recommender.query(vector, None, probabilities), 10)

    ask = lambda photo: lambda client: client.upload("/predict/similar_images", photo)  # noqa: E731
    with Server(data_dir, port) as server:
        client, ours, theirs, cpu_s = Client(port), [], [], []
        in_process(photos[0]), ask(photos[0])(client)
        for turn in range(queries):
            photo = photos[turn % len(photos)]
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            in_process(photo)
            theirs.append(time.perf_counter() - started_s)
            cpu_s.append(time.process_time() - started_cpu_s)
            started_s = time.perf_counter()
            ask(photo)(client)
            ours.append(time.perf_counter() - started_s)
        before_s = server.cpu_s()
        jobs = [ask(photos[n % len(photos)]) for n in range(queries * 4)]
        seconds, failures, _ = load(port, CLIENTS, jobs)
        many_cpu_s = (server.cpu_s() - before_s) / len(jobs)
    with Server(data_dir, port, "--workers", "2") as server:
        Client(port).upload("/predict/similar_images", photos[0])
        extra_mb = min(server.memory("Private_Dirty")) / 1e6
    return {
        "in_process_p50_ms": percentile_ms(theirs, 50),
        "p50_ms": percentile_ms(ours, 50),
        "p50_over_in_process": round(statistics.median(ours) / statistics.median(theirs), 3),
        "cpu_over_in_process": round(many_cpu_s / statistics.mean(cpu_s), 3),
        "p99_of_32_clients_ms": percentile_ms(seconds, 99),
        "errors": len(failures),
        "extra_worker_mb": round(extra_mb),
        "model_mb": round((generations.current_generation(data_dir / "index") / photo_model.ONNX).stat().st_size / 1e6),
    }


def measure_catalogue(data_dir: Path, port: int, products: pd.DataFrame, queries: int) -> dict:
    """Queries by title and by listing, from two clients; a core's worth is the queries a CPU second of the server."""
    rows = np.random.default_rng(2).integers(len(products), size=queries)
    kinds = {
        "title": [f"/search?q={quote(products['name'][row])}" for row in rows],
        "similar": [f"/products/{products['product_id'][row]}/similar" for row in rows],
    }
    figures: dict = {"listings": len(products)}
    with Server(data_dir, port) as server:
        for kind, paths in kinds.items():
            for path in paths[:20]:
                Client(port).get(path)
            before_s = server.cpu_s()
            seconds, failures, _ = load(port, 2, [lambda client, path=path: client.get(path) for path in paths])
            figures[f"{kind}_qps"] = round(len(paths) / (server.cpu_s() - before_s))
            figures[f"{kind}_p99_ms"] = percentile_ms(seconds, 99)
            figures[f"{kind}_errors"] = len(failures)
    return figures


def measure_mixed(data_dir: Path, port: int, photos: list[bytes], minutes: float) -> dict:
    """Photos, words and listings from eight clients while generations change; every answer must be of one generation."""
    index_dir, failures, answered = data_dir / "index", [], [0] * 8
    first = generations.current_generation(index_dir)
    source = shutil.copytree(first, data_dir / "source" / first.name)
    names = {first.name: ""}
    done = threading.Event()

    def ask(position: int) -> None:
        client, generator = Client(port), np.random.default_rng(position)
        while not done.is_set():
            turn = generator.random()
            try:
                if turn < 0.05:
                    status, headers, body = client.upload("/predict/similar_images", photos[int(generator.integers(len(photos)))])
                elif turn < 0.6:
                    status, headers, body = client.get(f"/search?q=w{int(generator.integers(1, 50))}&k=20")
                else:
                    status, headers, body = client.get(f"/products/p{int(generator.integers(200))}/similar?k=20")
            except OSError as error:
                failures.append(str(error))
                continue
            answered[position] += 1
            prefix = names.get(headers.get("x-generation"))
            others = [other for other in names.values() if other and other != prefix]
            found = [result["name"] for result in json.loads(body)["results"]] if status == 200 else []
            if not found or prefix is None or not all(name.startswith(prefix) for name in found):
                failures.append(f"{status} {headers.get('x-generation')} {body[:100]!r}")
            elif not prefix and any(name.startswith(tuple(others)) for name in found if others):
                failures.append(f"mixed into {first.name}: {found[0]}")

    with Server(data_dir, port) as server:
        threads = [threading.Thread(target=ask, args=(position,)) for position in range(len(answered))]
        for thread in threads:
            thread.start()
        started_s, published = time.monotonic(), 0
        memory: list[tuple[float, int]] = []  # seconds since the start, bytes
        while (passed_s := time.monotonic() - started_s) < 60 * minutes:
            if passed_s > PUBLISH_S * (published + 1):
                published += 1
                prefix = f"G{published} "
                names[f"{source.name}-{prefix.strip()}"] = prefix
                renamed_generation(index_dir, source, prefix)
            memory.append((passed_s, server.memory()[0]))
            time.sleep(0.5)
        done.set()
        for thread in threads:
            thread.join()
        served = json.loads(Client(port).get("/readyz")[2])["generation"]
    # Two generations are open for a while in each period: the middle of a whole one is compared with that of another.
    settled_s = min(SETTLED_S, 30 * minutes)
    after_a_minute = statistics.median(size for at_s, size in memory if settled_s <= at_s < settled_s + PUBLISH_S)
    at_the_end = statistics.median(size for at_s, size in memory if at_s >= memory[-1][0] - PUBLISH_S)
    for failure in failures[:5]:
        print(failure, file=sys.stderr)
    return {
        "mixed_answers": sum(answered),
        "mixed_generations": published,
        "mixed_last_served": served == generations.current_generation(index_dir).name,
        "mixed_failures": len(failures),
        "rss_growth": round(at_the_end / after_a_minute, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="a finished data folder (default: %(default)s)")
    parser.add_argument("--port", default=8099, type=int, help="a free port (default: %(default)s)")
    parser.add_argument("--minutes", default=0, type=float, help="of mixed load (default: none)")
    parser.add_argument("--quick", action="store_true", help="fewer queries, 25,000 listings: under a minute")
    args = parser.parse_args()
    source = generations.current_generation(args.data / "index")
    real = listings.read_products(args.data / "tabular")
    photos = [path.read_bytes() for path in sorted((args.data / "images").glob("*.jpg"))[:20]]
    queries, rows = (15, 25_000) if args.quick else (100, 100_000)
    with tempfile.TemporaryDirectory(prefix="marketplace-benchmark-") as temporary:
        folder = Path(temporary)
        for name in ("model", "photos/index", "catalogue/index"):
            (folder / name).mkdir(parents=True)
        files = resnet50(source, folder / "model")
        write_generation(folder / "photos" / "index", source, make_products(real, 2000), clustered(2000, 2048, seed=1), **files)
        figures = measure_photos(folder / "photos", args.port, photos, queries)
        products = make_products(real, rows)
        write_generation(folder / "catalogue" / "index", source, products, clustered(rows, DIMENSION, seed=1))
        figures |= measure_catalogue(folder / "catalogue", args.port, products, queries * 20)
        if args.minutes:
            figures |= measure_mixed(folder / "photos", args.port, photos, args.minutes)
    if not args.quick:
        results.save("api", figures, results.command())
    return show(figures)


if __name__ == "__main__":
    sys.exit(main())
