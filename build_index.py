"""Build everything that the API serves, and publish it as a new generation.

Reads   data/embeddings/, data/model/, data/tabular/ (products.csv, products_records.npy), data/dataset/ (training_data.npy,
        listings.npy)
Writes  data/index/ (current.json; <generation>/ with index.faiss, vectors.npy, text.faiss, catalogue.sqlite, ranker.json, models,
        report.json; what an update adds is in files named added_*)
Run     python build_index.py
        python build_index.py --embeddings image_embeddings.json   vectors of your own, {"<image id>": [floats], ...}
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from marketplace.files import atomic, cli, generations, reading, stages
from marketplace.files.stages import StageError
from marketplace.retrieval import builds
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.builds import Build, BuildSettings, Published
from marketplace.retrieval.entries import Entries

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
    args = parser.parse_args(argv)
    if not 0 < args.recall <= 1:
        parser.error(f"argument --recall: must be above 0 and at most 1, not {args.recall}")
    return args


def run(args: argparse.Namespace) -> dict:
    arguments = {"kind": args.kind, "recall": args.recall, "max_memory": args.max_memory, "full": args.full}
    with stages.open_stage(args.data, "index", arguments, digest_own(args.embeddings)) as stage:
        if stage.is_done():
            return stage.summary()
        served = Entries.read(args.data, args.embeddings)
        stage.begin()
        started_s = time.perf_counter()
        models = {path: digest for path, digest in stage.inputs.items() if path.startswith("model/")}
        settings = settings_of(args, models, served)
        published = Published.read(stage.folder)
        keys = served.keys()
        key = key_of(settings, stage.inputs)
        build = builds.plan(published, settings, keys, args.full)
        if build.is_published_as(key):
            return finish(stage, published.report)
        with generations.new_generation(stage.folder, build.generation(key)) as folder:
            build.write_vectors(folder, served)
            build.write_keys(folder, keys)
            build.write_catalogue(folder, served)
            link_models(args.data, folder, models)
            ranker_started_s = time.perf_counter()
            ranker = write_ranker(args.data, folder, served, build)
            ranker_seconds = round(time.perf_counter() - ranker_started_s, 2)
            report = describe(served, build, key, ranker) | {"index": measure(folder, build), "files": build.digests(folder)}
            report |= {"ranker_seconds": ranker_seconds, "build_seconds": round(time.perf_counter() - started_s, 2)}
            atomic.write_json(folder / builds.REPORT, report)
        return finish(stage, report)


def digest_own(embeddings: Path | None) -> dict[str, str]:
    """The digest of a file of the user's own embeddings, under its flag."""
    if embeddings is None:
        return {}
    if not embeddings.is_file():
        raise StageError(f"--embeddings {embeddings} does not exist: give a JSON file of the form {{image id: [floats]}}")
    return {"--embeddings": stages.digest(embeddings)}


def key_of(settings: BuildSettings, inputs: dict[str, str]) -> str:
    """A digest of all that a generation is made from."""
    made_from = [settings.arguments, inputs, stages.STAGES["index"].schema]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def settings_of(args: argparse.Namespace, models: dict[str, str], served: Entries) -> BuildSettings:
    return BuildSettings(
        kind=args.kind,
        recall=args.recall,
        max_memory_bytes=args.max_memory,
        models=models,
        own_embeddings=bool(args.embeddings),
        dimension=int(served.vectors.shape[1]),
    )


def link_models(data_dir: Path, folder: Path, models: dict[str, str]) -> None:
    """Give the generation models of its own: they must outlive a retraining."""
    for path in models:
        generations.link(data_dir / path, folder / Path(path).name)


def write_ranker(data_dir: Path, folder: Path, served: Entries, build: Build) -> dict:
    """Write ranker.json: the published one while the models stay the same, else one fitted on validation listings where there are
    enough of them. Returns what it was chosen by."""
    enough = np.count_nonzero(served.splits() == "validation") >= LEAST_JUDGED
    if build.keeps_ranker(enough):
        return build.copy_ranker(folder)

    from marketplace.models.text_model import TableModels
    from marketplace.retrieval import ranking  # these import more than an update needs
    from marketplace.retrieval.open_index import OpenIndex

    background = {}
    for kind, vectors in (("photo", served.vectors), ("text", served.text_vectors)):
        background[kind] = ranking.background_cosine(vectors)
        reading.release(vectors)
    ranking.Ranker.by_hand(background).save(folder / builds.RANKER)
    if not enough or build.settings.own_embeddings:
        return {"chosen": "by_hand"}
    probabilities = reading.read_array(data_dir / "embeddings" / "probabilities.npy")
    queries = ranking.judge(OpenIndex(folder), TableModels.load(folder), served.splits(), probabilities)
    ranker, chosen = ranking.fit(queries, background)
    ranker.save(folder / builds.RANKER)
    return chosen


def describe(served: Entries, build: Build, key: str, ranker: dict) -> dict:
    """What the report tells besides measurements. ranker: what it was chosen by."""
    history = build.history()
    return {
        "generation": build.generation(key),
        "photos": len(served.owners),
        "listings": len(served.duplicates),
        "photos_without_listing": len(served.unclaimed),
        "photos_without_vector": served.without_vector,
        "dimension": build.settings.dimension,
        "updated": history["updated"],
        "changed_rows": history["changed_rows"],
        "own_embeddings": build.settings.own_embeddings,
        "ranker": ranker,
        "settings": build.settings.recorded(),
        "schema": stages.STAGES["index"].schema,
        "key": key,
        "built_rows": history["built_rows"],
    }


def measure(folder: Path, build: Build) -> dict:
    """The photo index's kind, recall and times, and bytes a vector on the disk."""
    files, rows = vector_search.FILES["photos"], build.rows["photos"]
    index = vector_search.VectorIndex.open(folder / files.index, folder / files.vectors, rows.live())
    index_bytes = sum(path.stat().st_size for path in generations.parts(folder / files.index))
    return vector_search.measure(index, build.recall_queries) | {"bytes_per_vector": round(index_bytes / rows.total, 1)}


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
