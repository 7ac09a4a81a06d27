"""What shoppers type, answered by the published index and by plain BM25: quality and time, in a minute or two.

Reads   DATA: the stages' folders, up to data/index/
Run     python benchmarks/typed_queries.py --data DATA --queries FILE --split validation
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy and FAISS are imported

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from dataset import SPLITS, listings_with_splits
from evaluate import draw_rows
from marketplace import metrics
from marketplace.files import cli, generations
from marketplace.retrieval import search_quality
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.recommender import Recommender

SHOWN = 30  # questions that BM25 answers better


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of all stages")
    parser.add_argument("--queries", type=Path, help="CSV of typed queries: kind, query, category_pattern, title_pattern")
    parser.add_argument(
        "--split", default="validation", choices=SPLITS, help="whose listings are asked for (default: %(default)s)"
    )
    parser.add_argument("--sample", default=1000, type=cli.positive, help="listings asked for, at most (default: %(default)s)")
    parser.add_argument("--seed", default=0, type=cli.not_negative, help="of every draw (default: %(default)s)")
    parser.add_argument("--lost", metavar="KIND", help=f"show {SHOWN} questions of a kind that BM25 answers better")
    return parser.parse_args()


def show(answered: search_quality.Answered, seed: int) -> dict[str, list[float] | float | None]:
    """Print the table of figures, ours beside BM25's, and return their values."""
    figures: dict[str, list[float] | float | None] = {}
    print(f"{'':20}{'':12}{'ours':>7}{'BM25':>8}   difference")
    for (kind, figure), table in answered.questions.groupby(["kind", "figure"], sort=False):
        ours, bm25 = (table[name].to_numpy() for name in ("ours", "bm25"))
        values = [metrics.mean(each, seed) for each in (ours, bm25, ours - bm25)]
        if all(values):
            left, right, gain = values
            between = f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}), {len(table)} asked"
            print(f"{kind:20}{figure:12}{left['value']:7.3f}{right['value']:8.3f}   {between}")
            figures[search_quality.name_of(kind, figure)] = [left["value"], right["value"]]
    for name, figure in answered.figures(seed).items():
        if "answered_by" in name or name == "score_calibration_error":
            figures[name] = figure and figure["value"]
            print(f"{name:37}{'-' if figure is None else format(figure['value'], '.3f')}")
    print("score        answers    mean   right")
    for each in answered.reliability():
        print(f"{each['low']:.1f} to {each['high']:.1f}{each['answers']:10}{each['score']:8.3f}{each['right']:8.3f}")
    return figures


def main() -> int:
    args = parse_args()
    listings = listings_with_splits(args.data)
    recommender = Recommender(generations.current_generation(args.data / "index"))
    rows = draw_rows(np.flatnonzero(listings["split"] == args.split), args.sample, args.seed)
    queries = search_quality.read_queries(args.queries) if args.queries else None
    answered = search_quality.measure(recommender, listings, rows, args.seed, queries)
    print(f"{len(rows)} {args.split} listings, {len(answered.questions)} questions")
    figures = show(answered, args.seed)
    search = search_quality.search_by(recommender, listings["product_id"])
    figures["ms"] = time_queries(search, answered.questions["words"].tolist(), args.seed)
    print(f"ms a question: {figures['ms']}")
    if args.lost:
        table = answered.questions[answered.questions["kind"] == args.lost]
        lost = table.assign(loss=table["bm25"] - table["ours"]).query("loss > 0").nlargest(SHOWN, "loss")
        print(lost[["words", "ours", "bm25"]].to_string(index=False, max_colwidth=100))
    print(json.dumps(figures))
    return 0


def time_queries(search: search_quality.Search, words: list[str], seed: int, size: int = 300) -> dict[str, float]:
    """Milliseconds of single questions, on one thread."""
    taken = []
    for position in np.random.default_rng(seed).permutation(len(words))[:size]:
        started_s = time.perf_counter()
        search(words[position], Filters())
        taken.append((time.perf_counter() - started_s) * 1000)
    return {f"p{share}": round(float(np.percentile(taken, share)), 1) for share in (50, 99)}


if __name__ == "__main__":
    sys.exit(main())
