"""Build everything that the API serves, and publish it as a new generation.

Reads   data/embeddings/, data/model/, data/tabular/ (products.csv, rejected.csv), data/images/ (photos.csv, display.csv),
        data/dataset/ (training_data.csv, listings.csv)
Writes  data/index/ (current.json; <generation>/ with index.faiss, text.faiss, names.faiss, meanings.faiss, their vectors,
        catalogue.sqlite, moderation.sqlite, ranker.json, models, report.json)
Run     python build_index.py
        python build_index.py --embeddings image_embeddings.json   vectors of your own, {"<image id>": [floats], ...}
        python build_index.py --publish s3://my-bucket/index       for python api.py --data s3://my-bucket/index
        python build_index.py --serve GENERATION                   go back to the generation before
        python build_index.py --vectors milvus://host:19530        vectors in Milvus, for more than one machine holds
"""

import argparse
import contextlib
import functools
import hashlib
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from marketplace.cleaning.listings import read_currency
from marketplace.cleaning.prices import POUNDS
from marketplace.files import atomic, cli, generations, hidden, reading, s3, stages
from marketplace.files.stages import StageError
from marketplace.models import sample_sizes
from marketplace.models.text_encoder import TextEncoder
from marketplace.retrieval import builds, catalogue, milvus, moderation, publishing, typed
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.builds import BuildSettings, Published
from marketplace.retrieval.entries import Entries

OWN_SYNONYMS = "synonyms.csv"  # below --data, of the user's own, each line words that mean the same
UPDATE_QUERIES = 20  # that measure the recall of an update: exact search among all vectors is most of the cost
LEAST_JUDGED = 20  # validation listings; with fewer the weights set by hand stay
SUMMARY = (
    "generation", "photos", "listings", "photos_without_listing", "photos_without_vector", "dimension", "updated", "changed_rows",
)  # fmt: skip


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--embeddings", type=Path, help="JSON of photo vectors to use (default: those of extract_embeddings.py)")
    parser.add_argument(
        "--kind", default="auto", choices=vector_search.KINDS, help="auto: flat up to 20,000 photos (default: %(default)s)"
    )
    parser.add_argument(
        "--max-memory",
        type=cli.positive,
        help="bytes the photo index may take: 8 bits a dimension, else 4 (default: no limit)",
    )
    parser.add_argument("--recall", default=0.95, type=float, help="recall@10 that ivf is tuned to (default: %(default)s)")
    parser.add_argument(
        "--full", action="store_true", help="build anew (default: update the published generation when it is little changed)"
    )
    parser.add_argument(
        "--purge", action="store_true", help="leave no word of a listing that is gone in the index's files (updates leave some)"
    )
    parser.add_argument(
        "--publish", metavar="URI", help="s3:// URI of a bucket or a prefix to publish to as well (default: none)"
    )
    parser.add_argument(
        "--serve",
        metavar="GENERATION",
        help="only serve this generation in place of the present one, until the next that is built",
    )
    parser.add_argument(
        "--vectors",
        type=milvus.uri,
        metavar="URI",
        help=f"milvus://host:port to keep the vectors in, its token in {milvus.TOKEN_VARIABLE} (default: files of the index)",
    )
    args = parser.parse_args(argv)
    if args.vectors is not None and (args.kind == "ivf" or args.max_memory is not None):
        parser.error("argument --vectors: goes with neither --kind ivf nor --max-memory, which are of an index in files")
    if args.publish is not None and not s3.is_s3(args.publish):
        parser.error(f"argument --publish: {args.publish} is not of the form s3://bucket/prefix")
    if args.serve is not None and (args.purge or args.full or args.embeddings or args.vectors):
        parser.error("argument --serve: builds nothing, and goes with none of --purge, --full, --embeddings and --vectors")
    if not 0 < args.recall <= 1:
        parser.error(f"argument --recall: must be above 0 and at most 1, not {args.recall}")
    return args


def run(args: argparse.Namespace) -> dict:
    summary = build(args) if args.serve is None else serve(args.data, args.serve)
    if args.publish is None:
        return summary
    moves = args.serve is not None or args.purge or not summary.get("unchanged")
    return summary | publishing.publish(args.data, args.publish.rstrip("/"), moves, args.purge)


def build(args: argparse.Namespace) -> dict:
    arguments = {name: getattr(args, name) for name in ("kind", "recall", "max_memory", "full", "purge")}
    if args.vectors is not None:
        arguments["vectors"] = args.vectors
    own = digest_own(args.embeddings) | digest_synonyms(args.data)
    with stages.open_stage(args.data, "index", arguments, own, flags=cli.flags_of(args, "full", "purge")) as stage:
        if stage.is_done() and (args.vectors is None or milvus.are_there(generations.current_generation(stage.folder))):
            return stage.summary() | {"generation": tell_served(stage, args.purge)}
        servers = milvus.servers(stage.folder)
        if args.vectors is not None:
            milvus.check_name(milvus.Server.parse(args.vectors), stage.folder)
        entries = Entries.read(args.data, args.embeddings)
        stage.begin()
        settings = settings_of(args, stage.inputs, entries)
        current = Published.current(stage.folder)
        is_kept = args.vectors is None and not args.full
        source = current if is_kept and current.was_built_with(settings) and current.is_whole() else None
        key = key_of(settings, stage.inputs)
        name = name_of(key, source, args.purge)
        forget_gone(stage.folder, current)
        if (ready := made_already(stage.folder, source, key, name, args.purge)) is not None:
            generations.publish(stage.folder, ready.folder.name)
            milvus.follow(stage.folder, servers)
            return finish(stage, ready.report)
        name = generations.free_name(stage.folder, name)
        with generations.new_generation(stage.folder, name) as folder:
            report = {"generation": name, "key": key, "schema": stages.STAGES["index"].schema}
            report |= write(stage, folder, name, entries, settings, current, source, args.purge)
            atomic.write_json(folder / builds.REPORT, report)
        milvus.follow(stage.folder, servers)
        return finish(stage, report)


def tell_served(stage: stages.Stage, purge: bool) -> str:
    """The generation that is served; where --serve has put it in the place of the one that was built last, stderr tells.

    Raises StageError where that one was to be purged: the one that is served was not.
    """
    served, built = generations.current_generation(stage.folder).name, stage.summary()["generation"]
    if served != built and purge:
        raise StageError(
            f"{served} is served, as --serve said, and was not purged: run python build_index.py --serve {built} first"
        )
    if served != built:
        print(f"{served} goes on being served, as --serve said; python build_index.py --serve {built} ends it", file=sys.stderr)
    return served


def serve(data_dir: Path, name: str) -> dict:
    """Serve a generation that is there in place of the present one. The next run for the same data and flags leaves it so."""
    generations.current_generation(data_dir / "index")  # before a folder is made below a mistyped --data
    with stages.open_stage(data_dir, "index", {}, reads=()) as stage:
        wanted = Published.read(stage.folder / name)
        if wanted.folder.parent != stage.folder or not wanted.is_whole():
            others = ", ".join(sorted(path.parent.name for path in stage.folder.glob(f"[!.]*/{builds.REPORT}")))
            raise StageError(f"{stage.folder} holds no whole generation {name}: give one of {others or 'none, as none is there'}")
        manifest = stage.whole_manifest()
        stage.unfinish()
        servers = milvus.servers(stage.folder)
        generations.publish(stage.folder, name)
        milvus.follow(stage.folder, servers)
        if manifest is not None:
            manifest["outputs"]["current.json"] = stages.digest(stage.folder / "current.json")
            atomic.write_json(stage.folder / stages.MANIFEST, manifest)
        return {"stage": "index", "generation": name}


def forget_gone(index_dir: Path, current: Published) -> None:
    """Forget which listings are hidden of those that have been gone from the table since the generation before this one."""
    with contextlib.suppress(sqlite3.Error):  # of a damaged one nobody can tell: all stay hidden
        hidden.forget_gone(index_dir, functools.partial(catalogue.find_ids, current.folder))


def write(
    stage: stages.Stage,
    folder: Path,
    name: str,
    entries: Entries,
    settings: BuildSettings,
    current: Published,
    source: Published | None,
    purge: bool,
) -> dict:
    """Fill the folder of generation `name`; returns what its report tells. source: the current one, where it may be updated."""
    started_s = time.perf_counter()
    currency = checked_currency(stage.data_dir)
    photos = (entries.image_ids, entries.owners)
    ranges = read_price_ranges(stage.data_dir / "model" / stages.PRICE_RANGES)
    catalogue.write(folder, entries.listings(), *photos, entries.duplicates, currency, entries.sizes, ranges)
    builds.write_vectors(stage.data_dir, folder, entries, settings)
    copy_models(stage.data_dir, folder, settings.models)
    moderation.write(stage.data_dir, folder, entries)
    history = write_engines(folder, entries, settings, source)
    if settings.server is not None:
        milvus.drop_strangers(settings.server, stage.folder)  # what a build that failed has left takes room
        builds.write_remote(folder, name, entries, settings)
    is_update = history["updated"] is not None
    builds.write_synonyms(folder, stage.data_dir / OWN_SYNONYMS)
    if (encoder := TextEncoder.load(folder, cli.cores())) is not None:
        builds.write_category_vectors(folder, encoder, source.folder if is_update else None)
    if purge:
        builds.purge(folder)
    ranker_started_s = time.perf_counter()
    ranker = write_ranker(stage.data_dir, folder, entries, settings, current, is_update)
    ranker_seconds = round(time.perf_counter() - ranker_started_s, 2)
    report = describe(entries, settings) | history | {"purged": purge or not is_update, "ranker": ranker}
    report["index"] = measure(folder, entries.vectors, UPDATE_QUERIES if is_update else vector_search.RECALL_QUERIES)
    if settings.server is not None:
        builds.leave_out_vectors(folder)
    report["warnings"] = [] if ranker["chosen"] != "by_hand" else sample_sizes.of_ranking(judged(entries), LEAST_JUDGED)
    sample_sizes.tell(report["warnings"])
    report["files"] = digest_files(folder, digested_files(stage, source))
    return report | {"ranker_seconds": ranker_seconds, "build_seconds": round(time.perf_counter() - started_s, 2)}


def checked_currency(data_dir: Path) -> str:
    """The currency of the table's prices; StageError where the price model was trained on another one's."""
    currency = read_currency(data_dir / "tabular")
    trained = reading.read_json(data_dir / "model" / "price_model.json")["first"].get("currency", POUNDS.currency)
    if trained != currency:
        raise StageError(
            f"{data_dir / 'model'} knows prices in {trained}, and the table has {currency}: run python train.py first"
        )
    return currency


def read_price_ranges(path: Path) -> Iterator[tuple[str, float, float, float]]:
    """product_id, and low, median and high price, of each listing that the price model learned from."""
    for block in reading.read_csv(path, chunksize=catalogue.ROWS_AT_A_TIME):
        numbers = block.astype({"low": float, "median": float, "high": float})
        yield from numbers[["product_id", "low", "median", "high"]].itertuples(index=False, name=None)


def digest_own(embeddings: Path | None) -> dict[str, str]:
    """The digest of a file of the user's own embeddings, under its flag."""
    if embeddings is None:
        return {}
    if not embeddings.is_file():
        raise StageError(f"--embeddings {embeddings} does not exist: give a JSON file of the form {{image id: [floats]}}")
    return {"--embeddings": stages.digest(embeddings)}


def digest_synonyms(data_dir: Path) -> dict[str, str]:
    """The digests of the synonyms that come with the program and of the marketplace's own, where there are any."""
    found = {"--synonyms": typed.SYNONYMS, f"--{OWN_SYNONYMS}": data_dir / OWN_SYNONYMS}
    return {name: stages.digest(path) for name, path in found.items() if path.is_file()}


def key_of(settings: BuildSettings, inputs: dict[str, str]) -> str:
    """A digest of all that a generation is made from."""
    made_from = [settings.arguments, inputs, stages.STAGES["index"].schema]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def name_of(key: str, source: Published | None, purge: bool) -> str:
    """The name of the generation made from what `key` stands for, and from the published one where it is updated."""
    if source is None:
        return key[:12]
    return hashlib.sha256(json.dumps([key, source.folder.name, purge]).encode()).hexdigest()[:12]


def made_already(index_dir: Path, source: Published | None, key: str, name: str, purge: bool) -> Published | None:
    """The generation that is asked for, where a run that was killed before it could say so has made it; None where none has."""
    if source is not None and source.report["key"] == key and (source.report["purged"] or not purge):
        return source
    made = Published.read(index_dir / name)
    return made if made.report.get("key") == key and made.is_whole() else None


def settings_of(args: argparse.Namespace, inputs: dict[str, str], entries: Entries) -> BuildSettings:
    return BuildSettings(
        kind=args.kind,
        recall=args.recall,
        max_memory_bytes=args.max_memory,
        models={path: digest for path, digest in inputs.items() if path.startswith("model/")},
        own_embeddings=bool(args.embeddings),
        dimension=int(entries.vectors.shape[1]),
        server=None if args.vectors is None else milvus.Server.parse(args.vectors),
    )


def copy_models(data_dir: Path, folder: Path, models: dict[str, str]) -> None:
    """Give the generation models of its own: they outlive a retraining, and a file that is changed in data/model/."""
    for path in models:
        shutil.copyfile(data_dir / path, folder / Path(path).name)


def write_engines(folder: Path, entries: Entries, settings: BuildSettings, source: Published | None) -> dict:
    """Write the indexes: those of `source` updated, unless they are outgrown. Returns what the report tells of the generations
    before: updated, changed_rows, and, since the last full build, built_rows and drift."""
    rows = {kind: len(vectors) for kind, vectors in entries.indexed().items()}
    if source is not None:
        changes = source.changes_to(folder)
        if not source.is_outgrown(changes, rows, settings):
            builds.update_engines(source.folder, folder, entries, changes)
            changed_rows = {kind: change.size for kind, change in changes.items()}
            built_rows, drift = source.report["built_rows"], source.drift_after(changes)
            return {"updated": source.folder.name, "changed_rows": changed_rows, "built_rows": built_rows, "drift": drift}
    builds.write_engines(folder, entries, settings)
    return {"updated": None, "changed_rows": None, "built_rows": rows, "drift": dict.fromkeys(rows, 0)}


def write_ranker(
    data_dir: Path, folder: Path, entries: Entries, settings: BuildSettings, current: Published, is_update: bool
) -> dict:
    """Write ranker.json: the published one while the models stay the same, else one fitted on validation listings where there are
    enough of them. Returns what it was chosen by."""
    enough = judged(entries) >= LEAST_JUDGED
    if current.ranks_alike(settings) and (is_update or current.ranks_by_fit() or not enough):
        shutil.copy2(current.folder / builds.RANKER, folder / builds.RANKER)
        return current.report["ranker"]

    from marketplace.models.text_model import TableModels
    from marketplace.retrieval import ranker_fit, ranking  # these import more than an update needs
    from marketplace.retrieval.open_index import OpenIndex

    background = {}
    for kind, vectors in (("photo", entries.vectors), ("text", entries.text_vectors)):
        background[kind] = ranker_fit.background_cosine(vectors)
        reading.release(vectors)
    ranking.Ranker.by_hand(background).save(folder / builds.RANKER)
    if not enough or settings.own_embeddings:
        return {"chosen": "by_hand"}
    probabilities = reading.read_array(data_dir / "embeddings" / "probabilities.npy")
    index = OpenIndex(folder)
    models = TableModels.load(folder, index.text_encoder).before_refit()  # the questions are about validation listings
    queries = ranker_fit.judge(index, models, entries.splits, probabilities)
    ranker, chosen = ranker_fit.fit(queries, background)
    ranker, calibrated = ranker_fit.calibrate(ranker, queries, ranker_fit.judge_typed(index, entries.splits))
    ranker.save(folder / builds.RANKER)
    return chosen | {"calibration": calibrated}


def judged(entries: Entries) -> int:
    """Listings that the ranker can be fitted on."""
    return int(np.count_nonzero(entries.splits == "validation"))


def describe(entries: Entries, settings: BuildSettings) -> dict:
    """What the report tells of what is in the generation, and of how it was built."""
    return {
        "photos": len(entries.image_ids),
        "listings": len(entries.listing_ids),
        "photos_without_listing": entries.unclaimed,
        "photos_without_vector": entries.without_vector,
        "dimension": settings.dimension,
        "own_embeddings": settings.own_embeddings,
        "settings": settings.recorded(),
        "schema": stages.STAGES["index"].schema,
    }


def measure(folder: Path, vectors: np.ndarray, queries: int) -> dict:
    """The kind, recall and times of the index of the photos' vectors and, where it is a file, bytes a vector on the disk."""
    measured = vector_search.measure(milvus.open_vectors(folder, "photos"), vectors, queries)
    reading.release(vectors)
    path = folder / vector_search.FILES["photos"].index
    return measured | ({"bytes_per_vector": round(path.stat().st_size / len(vectors), 1)} if path.is_file() else {})


def digest_files(folder: Path, digested: dict[Path, str]) -> dict[str, str]:
    """The digest of each of the generation's files. digested: files with digests taken already; some are linked into it."""
    by_inode = {_inode(path): digest for path, digest in digested.items()}
    names = generations.files_of(folder)
    found = {name: by_inode[_inode(folder / name)] for name in names if _inode(folder / name) in by_inode}
    found |= stages.digests(folder, *(name for name in names if name not in found))
    return {name: found[name] for name in names}


def digested_files(stage: stages.Stage, source: Published | None) -> dict[Path, str]:
    """What this run has read and digested: files of other stages, and of the generation that it updates."""
    digested = {stage.data_dir / path: digest for path, digest in stage.inputs.items() if not path.startswith("--")}
    if source is not None:
        digested |= {source.folder / path: digest for path, digest in source.report["files"].items()}
    return digested


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def finish(stage: stages.Stage, report: dict) -> dict:
    """The stage's summary of a generation that is published, by its report."""
    name = report["generation"]
    summary = {field: report[field] for field in SUMMARY} | {"recall_at_10": report["index"]["recall_at_10"]}
    digested = {f"{name}/{file_name}": digest for file_name, digest in report["files"].items()}
    return stage.finish(summary, ["current.json", f"{name}/{builds.REPORT}"], digested)


def main(argv=None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
