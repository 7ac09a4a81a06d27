"""Write the listings most like every listing: what GET /products/{product_id}/similar answers, in bulk and in process.

Reads   data/index/ (the published generation; hidden.json)
Writes  data/recommendations/ (similar.jsonl or similar.parquet: id, rank, similar_id, score, parts; report.json)
Run     python recommend.py
        python recommend.py --ids ids.txt --k 5 --max-price 100
"""

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson
import threadpoolctl

from marketplace.cleaning.listings import canonical_id
from marketplace.files import atomic, cli, disk, generations, hidden, locks, reading, stages
from marketplace.files.progress import progress
from marketplace.files.stages import StageError
from marketplace.retrieval import milvus
from marketplace.retrieval.catalogue import Catalogue, UnknownName
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.open_index import OpenIndex
from marketplace.retrieval.ranking import KINDS
from marketplace.retrieval.recommender import check_files

FOLDER, REPORT = "recommendations", "report.json"
FORMATS = ("jsonl", "parquet")
BLOCK = 250  # listings that one process answers for at a time, and that a killed run loses at most, a process
MAX_K = 1000
MOST_NAMED = 10  # of the hidden ids in a message
SCHEMA = 1  # raised when the files change their meaning


@dataclass(frozen=True)
class Asked:
    """What is asked of every listing; generation: the folder of the index; left_out: ids that are no answer; same_seller: whether
    listings of its own seller are; server: of the vectors, in place of the one that the index tells of."""

    generation: Path
    k: int
    filters: Filters
    min_score: float
    left_out: tuple[str, ...]
    same_seller: bool
    server: milvus.Server | None = None


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--ids", type=Path, help="file of the listings to answer for, one id a line (default: all)")
    parser.add_argument("--k", default=10, type=cli.positive, help="listings like each, at most (default: %(default)s)")
    parser.add_argument("--category", help="only those of a category, at any level, or of a path")
    parser.add_argument("--min-price", type=_price, help="only those from this price on")
    parser.add_argument("--max-price", type=_price, help="only those up to this price")
    parser.add_argument("--location", help="only those of a town, a county, 'Town, County', or what begins so")
    parser.add_argument("--min-score", default=0.0, type=_share, help="only those that score as much (default: %(default)s)")
    parser.add_argument("--exclude", type=Path, help="file of listings that are no answer, one id a line (default: none)")
    parser.add_argument(
        "--same-seller", default="yes", choices=("yes", "no"), help="no: without its seller's others (default: %(default)s)"
    )
    parser.add_argument("--format", default="jsonl", choices=FORMATS, help="parquet needs pyarrow (default: %(default)s)")
    parser.add_argument("--workers", type=cli.positive, help="processes (default: one a core)")
    parser.add_argument(
        "--vectors",
        type=milvus.uri,
        metavar="URI",
        help="milvus://host:port of an index whose vectors are in Milvus (default: as it was built with)",
    )
    args = parser.parse_args(argv)
    if args.k > MAX_K:
        parser.error(f"argument --k: {args.k} is above {MAX_K}")
    if None not in (args.min_price, args.max_price) and args.min_price > args.max_price:
        parser.error(f"argument --min-price: {args.min_price:g} is above --max-price {args.max_price:g}: swap them")
    return args


def _price(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= 0 and math.isfinite(value):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a price of 0 or more")


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def run(args: argparse.Namespace) -> dict:
    started_s = time.time()
    if args.format == "parquet":
        check_pyarrow()
    index_dir, folder = args.data / "index", args.data / FOLDER
    generation = generations.current_generation(index_dir)
    check_files(generation)
    catalogue, hidden_ids = Catalogue(generation), hidden.read(index_dir)
    ids = asked_ids(catalogue, hidden_ids, args.ids)
    left_out = known_ids(catalogue, args.exclude)
    filters = Filters(args.category or None, args.min_price, args.max_price, args.location or None)
    try:
        catalogue.hiding(hidden_ids).check(filters)
    except UnknownName as error:
        raise StageError(str(error).replace("GET /filters lists them", "the table has them")) from None
    if args.same_seller == "no" and not catalogue.has_sellers():
        raise StageError(
            "no listing says who sells it: name the column in --schema and run the stages, or leave out --same-seller"
        )
    left_out = tuple(sorted({*hidden_ids, *left_out}))
    server = None if args.vectors is None else milvus.Server.parse(args.vectors)
    asked = Asked(generation, args.k, filters, args.min_score, left_out, args.same_seller == "yes", server)
    with locked(folder):
        output = folder / f"similar.{args.format}"
        key = key_of(asked, ids)
        if (done := finished(folder, output, key)) is not None:
            return done | {"unchanged": True}
        parts = begin(folder, key)
        write_parts(parts, asked, ids, args.workers or cli.cores())
        rows = join(parts, output)
        return finish(folder, output, {"key": key, "generation": generation.name, "listings": len(ids), "rows": rows}, started_s)


def check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise StageError("--format parquet needs pyarrow: run pip install pyarrow, or leave the format at jsonl") from None


def read_ids(path: Path) -> list[str]:
    """The ids of a file, one a line, each once."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"{path} cannot be read as a file of ids ({error}): give one id a line") from None
    return list(dict.fromkeys(canonical_id(line.strip()) for line in lines if line.strip()))


def known_ids(catalogue: Catalogue, path: Path | None) -> list[str]:
    """The ids of a file, or StageError with those that no listing has."""
    if path is None:
        return []
    ids = read_ids(path)
    found = catalogue.find_ids(ids)
    if unknown := [one for one in ids if one not in found]:
        raise StageError(f"{hidden.UnknownIds(unknown)} in {path}: take them out")
    return ids


def asked_ids(catalogue: Catalogue, hidden_ids: frozenset[str], path: Path | None) -> list[str]:
    """The listings to answer for: those of a file, or all that are not hidden, in the catalogue's order."""
    if path is None:
        listings = catalogue.products(range(catalogue.n_products), ["product_id"])
        return [listing["product_id"] for listing in listings if listing["product_id"] not in hidden_ids]
    ids = known_ids(catalogue, path)
    if hidden_too := [one for one in ids if one in hidden_ids]:
        raise StageError(f"hidden listings are not answered for: take {', '.join(hidden_too[:MOST_NAMED])} out of {path}")
    return ids


def key_of(asked: Asked, ids: Sequence[str]) -> str:
    """A digest of all that the answers depend on, but for their format."""
    answered_by = {name: value for name, value in asdict(asked).items() if name != "server"}
    wanted = answered_by | {"generation": asked.generation.name, "schema": SCHEMA, "ids": list(ids)}
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(folder, exclusive=True), disk.writing(folder):
            yield
    except locks.Locked:
        raise StageError(f"another run is at work in {folder}: wait for its end, then run python recommend.py again") from None


def finished(folder: Path, output: Path, key: str) -> dict | None:
    """The summary of an earlier run for the same, whose file is as it wrote it; None where there is none."""
    try:
        report = reading.read_json(folder / REPORT)
        if report["key"] == key and report["files"] == stages.digests(folder, output.name):
            return report["summary"]
    except (StageError, KeyError, TypeError):
        pass
    return None


def begin(folder: Path, key: str) -> Path:
    """The folder of the parts that are done: those of a run for the same are gone on with, all others go."""
    (folder / REPORT).unlink(missing_ok=True)
    atomic.remove_leftovers(folder)
    parts = folder / f"parts-{key[:12]}"
    for other in folder.glob("parts-*"):
        if other != parts:
            shutil.rmtree(other)
    parts.mkdir(exist_ok=True)
    atomic.remove_leftovers(parts)
    return parts


def write_parts(parts: Path, asked: Asked, ids: Sequence[str], workers: int) -> None:
    """Write a file of lines for each block of listings that has none yet, with several processes."""
    blocks = [(parts / f"{start // BLOCK:07}.jsonl", ids[start : start + BLOCK]) for start in range(0, len(ids), BLOCK)]
    todo = [(path, block) for path, block in blocks if not path.exists()]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")  # threads run here, whose locks a fork would copy
    # What waits is cancelled, where it fails or is interrupted.
    with ProcessPoolExecutor(min(workers, len(todo)), context, open_index, (asked,)) as pool:
        try:
            under_way = [pool.submit(write_part, path, block) for path, block in todo]
            for done in progress(as_completed(under_way), f"listings like each, {BLOCK} at a time", "block", len(todo)):
                done.result()
        except BrokenProcessPool:
            sentence = "a process ended before its work did: run it again, with fewer --workers; what is done stays"
            raise StageError(sentence) from None
        finally:
            pool.shutdown(cancel_futures=True)


_own: dict[str, object] = {}  # of a process of write_parts(): its index, and what is asked of it


def open_index(asked: Asked) -> None:
    """Set up a process of write_parts(), which ends when the one that started it was killed."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    threadpoolctl.threadpool_limits(1)  # the processes have the cores; threads that wait for each other cost more than they give
    _own.update(index=OpenIndex(asked.generation, asked.server).hiding(asked.left_out), asked=asked)


def write_part(path: Path, ids: Sequence[str]) -> None:
    atomic.write_bytes(path, b"".join(lines(_own["index"], _own["asked"], ids)))


def lines(index: OpenIndex, asked: Asked, ids: Sequence[str]) -> Iterator[bytes]:
    """A line of JSON for each listing like each of `ids`, best first; scores as the API rounds them."""
    rows = index.catalogue.rows_of(ids)
    queries = index.queries_of(rows)
    if not asked.same_seller:
        left_out = map(index.catalogue.of_same_seller, rows)
        queries = [replace(query, excluded_rows=own) for query, own in zip(queries, left_out, strict=True)]
    found = [index.like(query, asked.k, asked.filters, min_score=asked.min_score) for query in queries]
    hit_rows = sorted({hit.row for hits in found for hit in hits})
    listings = index.catalogue.products(hit_rows, ["product_id"])
    id_of = {row: listing["product_id"] for row, listing in zip(hit_rows, listings, strict=True)}
    for one, hits in zip(ids, found, strict=True):
        for rank, hit in enumerate(hits, 1):
            parts = {kind: round(value, 6) for kind, value in hit.parts.items()}
            record = {"id": one, "rank": rank, "similar_id": id_of[hit.row], "score": round(hit.score, 6), "parts": parts}
            yield orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def join(parts: Path, output: Path) -> int:
    """Write the parts as one file; returns how many lines or rows it has."""
    paths = sorted(parts.glob("*.jsonl"))
    write: Callable = write_parquet if output.suffix == ".parquet" else write_lines
    with atomic.atomic_path(output) as temporary:
        return write(paths, temporary)


def write_lines(paths: Sequence[Path], output: Path) -> int:
    rows = 0
    with output.open("wb") as file:
        for path in paths:
            content = path.read_bytes()
            file.write(content)
            rows += content.count(b"\n")
    return rows


def write_parquet(paths: Sequence[Path], output: Path) -> int:
    """A row group for each part; `parts` is a struct of all kinds of evidence, null where there is none of it."""
    import pyarrow
    import pyarrow.parquet

    kinds = pyarrow.struct([(kind, pyarrow.float64()) for kind in KINDS])
    columns = [("id", pyarrow.string()), ("rank", pyarrow.int32()), ("similar_id", pyarrow.string())]
    schema = pyarrow.schema([*columns, ("score", pyarrow.float64()), ("parts", kinds)])
    rows = 0
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        for path in paths:
            records = [orjson.loads(line) for line in path.read_bytes().splitlines()]
            writer.write_table(pyarrow.Table.from_pylist(records, schema))
            rows += len(records)
    return rows


def finish(folder: Path, output: Path, facts: dict, started_s: float) -> dict:
    """Write the report, which makes the run a finished one, remove the parts, and return the summary."""
    summary = {name: facts[name] for name in ("generation", "listings", "rows")} | {"seconds": round(time.time() - started_s, 2)}
    atomic.write_json(folder / REPORT, {"key": facts["key"], "files": stages.digests(folder, output.name), "summary": summary})
    for parts in folder.glob("parts-*"):
        shutil.rmtree(parts)
    return summary


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
