"""What the benchmarks of the service share: the service as a process, a client, and generations made for measuring."""

import http.client
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
START_S = 120
KEY = "benchmark-key-0123456789"
DIMENSION = 256  # of the photo vectors at 100,000 listings, a projected embedding's
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """api.py over a data folder, as a process of its own. root: the checkout whose api.py it is; start_s: until it answers."""

    def __init__(self, data_dir: Path, port: int, *flags: str, root: Path = ROOT, start_s: float = START_S):
        command = [sys.executable, "api.py", "--data", str(Path(data_dir).resolve()), "--port", str(port), *flags]
        environment = os.environ | {"MARKETPLACE_API_KEY": KEY}
        self.port, self.log_path = port, Path(data_dir) / "api.log"
        self._log = self.log_path.open("w")
        self._process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=self._log)
        deadline_s = time.monotonic() + start_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit(f"error: the service does not start: see {self.log_path}")
            time.sleep(0.1)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop(START_S)
        self._log.close()

    def stop(self, within_s: float) -> bool:
        """Tell it to stop; whether it did so in time. It is killed when it did not."""
        self._process.terminate()
        try:
            self._process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        return True

    def _answers(self) -> bool:
        try:
            return Client(self.port).get("/readyz")[0] == 200
        except OSError:
            return False

    def alive(self) -> bool:
        return self._process.poll() is None

    def pids(self) -> list[int]:
        """The processes that answer: the workers, or the only one."""
        own = self._process.pid
        return [child for child in children(own) if "api.py" in command_of(child)] or [own]

    def decoders(self) -> list[int]:
        """The processes that decode photos, of all that answer."""
        started = [child for pid in self.pids() for child in children(pid)]
        return [*started, *(worker for child in started for worker in children(child))]

    def cpu_s(self) -> float:
        """CPU seconds of all of them so far, and of those that decode for them."""
        pids = [*self.pids(), *self.decoders()]
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS  # utime and stime

    def memory(self, name: str = "Rss", pids: list[int] | None = None) -> list[int]:
        """Bytes of each: Rss, Private_Dirty, ... of /proc/<pid>/smaps_rollup; by default of those that answer."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids or self.pids()]
        return [1024 * int(re.search(rf"^{name}: +(\d+) kB", text, re.M)[1]) for text in texts]


def children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


class Client:
    """One connection, kept alive."""

    def __init__(self, port: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict, bytes]:
        """Status, headers in lower case, body; OSError when the service drops the connection."""
        try:
            self._connection.request(method, path, body, headers or {})
            response = self._connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise OSError(f"{method} {path[:60]}: {error!r}") from error

    def get(self, path: str) -> tuple[int, dict, bytes]:
        return self.send("GET", path)

    def upload(self, path: str, photo: bytes, **fields: str) -> tuple[int, dict, bytes]:
        """POST a multipart form with the photo and fields of text."""
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + photo + f"\r\n--{boundary}--\r\n".encode()
        return self.send("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def load(port: int, clients: int, jobs: list) -> tuple[list[float], list[str], float]:
    """Run jobs, functions of a Client, from several clients at once, each with one connection.

    Returns the seconds of each request, what failed, and the seconds of all. A job returns (status, headers, body).
    """
    failures: list[str] = []

    def run(own_jobs: list) -> list[float]:
        client, seconds = Client(port), []
        for job in own_jobs:
            started_s = time.perf_counter()
            try:
                status, _, body = job(client)
            except OSError as error:
                failures.append(str(error))
                continue
            seconds.append(time.perf_counter() - started_s)
            if status >= 400:
                failures.append(f"{status} {body[:100]!r}")
        return seconds

    started_s = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(itertools.chain.from_iterable(pool.map(run, [jobs[n::clients] for n in range(clients)])))
    return seconds, failures, time.perf_counter() - started_s


def percentile_ms(seconds: list[float], percent: float) -> float:
    return round(1000 * float(np.percentile(seconds, percent)), 2)


def show(figures: dict) -> int:
    """A table on stderr, the figures as one JSON object on stdout, and the exit code of a benchmark that ran."""
    for name, value in figures.items():
        print(f"{name:24} {value}", file=sys.stderr)
    print(json.dumps(figures))
    return 0


def make_products(source: pd.DataFrame, rows: int, seed: int = 0) -> pd.DataFrame:
    """Listings put together from words of real ones and from others whose frequencies fall as in any language (Zipf)."""
    generator = np.random.default_rng(seed)
    picked = source.iloc[generator.integers(len(source), size=rows)].reset_index(drop=True)
    rare = np.minimum(generator.zipf(1.2, size=(rows, 20)), 200_000)
    picked["product_id"] = [f"p{row}" for row in range(rows)]
    picked["name"] = [f"{name} w{numbers[0]} w{numbers[1]}" for name, numbers in zip(picked["name"], rare, strict=True)]
    words = [" ".join(f"w{number}" for number in numbers) for numbers in rare]
    picked["description"] = [f"{text} {more}" for text, more in zip(picked["description"], words, strict=True)]
    return picked


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """(rows, dimension) float32 unit vectors, in clusters as photos and texts are: those of benchmarks/search.py at a million, 50
    to a centre. Among directions without any order nothing is faster than a scan of all, whatever the index."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, rows // 50), dimension), np.float32)
    vectors = centres[generator.integers(len(centres), size=rows)]
    vectors += np.float32(0.6) * generator.standard_normal(vectors.shape, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_generation(index_dir: Path, source: Path, products: pd.DataFrame, vectors: np.ndarray, **files: Path) -> None:
    """Publish a generation with the models and ranker of `source`, other products, and one photo vector for each.

    files: "image_model.onnx"-like names, dots as underscores twice, to take from elsewhere.
    """
    import faiss

    from marketplace.files import atomic, generations, reading, stages
    from marketplace.models import photo_model, text_encoder
    from marketplace.retrieval import builds, catalogue, forward, keys, moderation, typed_search, words
    from marketplace.retrieval import vectors as vector_search

    encoder_files = [name for name in text_encoder.FILES if (source / name).exists()]
    indexed = {"photos": vectors}
    for kind in ("listings", "names", "meanings"):
        if (path := source / vector_search.FILES[kind].vectors).exists():  # the last two where there is a text encoder
            indexed[kind] = clustered(len(products), reading.read_array(path).shape[1], seed=0)
    with generations.new_generation(index_dir, f"made{len(products)}") as folder:
        image_ids = [f"i{row}" for row in range(len(products))]
        for kind, rows in indexed.items():
            names = vector_search.FILES[kind]
            row_keys = keys.keys(image_ids if kind == "photos" else products["product_id"].tolist())
            faiss.write_index(vector_search.build(rows, keys=row_keys), str(folder / names.index))
            atomic.write_array(folder / names.vectors, rows)
            atomic.write_array(folder / names.keys, row_keys)
        catalogue.write(folder, [products], image_ids, np.arange(len(products)))
        words.write(folder, *builds.listing_blocks(folder, row_keys))
        forward.write(folder, [products])
        shutil.copy2(source / typed_search.SYNONYMS, folder / typed_search.SYNONYMS)
        for name in {*photo_model.FILES, *encoder_files, "ranker.json", moderation.DATABASE}:
            shutil.copy2(files.get(name, source / name), folder / name)
        if (encoder := text_encoder.TextEncoder.load(folder)) is not None:
            builds.write_category_vectors(folder, encoder, None)
        own = vectors.shape[1] != photo_model.Description.load(folder).dimension
        digests = stages.digests(folder, *generations.files_of(folder))
        atomic.write_json(
            folder / "report.json", {"own_embeddings": own, "files": digests, "schema": stages.STAGES["index"].schema}
        )


def renamed_generation(index_dir: Path, source: Path, prefix: str) -> str:
    """Publish a copy of a generation in which every listing's name begins with `prefix`; returns its name."""
    import sqlite3

    from marketplace.files import atomic, generations, reading, stages

    name = f"{source.name}-{prefix.strip()}"
    with generations.new_generation(index_dir, name) as folder:
        for path in source.iterdir():
            (shutil.copy2 if path.suffix in (".sqlite", ".json") else generations.link)(path, folder / path.name)
        connection = sqlite3.connect(folder / "catalogue.sqlite")
        with connection:
            connection.execute("UPDATE products SET name = ? || name", (prefix,))
        connection.close()
        report = reading.read_json(folder / "report.json")
        report["files"]["catalogue.sqlite"] = stages.digest(folder / "catalogue.sqlite")
        atomic.write_json(folder / "report.json", report)
    return name
