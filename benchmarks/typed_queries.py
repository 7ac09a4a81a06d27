"""What shoppers type, answered by the published index and by plain BM25: quality and time, in a minute or two.

Reads   DATA: the stages' folders, up to data/index/
Run     python benchmarks/typed_queries.py --data DATA --queries FILE                  asks for validation listings: to choose by
        python benchmarks/typed_queries.py --data DATA --queries FILE --split test     a full run, which is kept
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
import results

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


def compare(answered: search_quality.Answered, seed: int) -> dict[str, dict[str, float] | None]:
    """Ours beside plain BM25's, and beside what should be where that is plain; None where nothing could be measured."""
    found: dict[str, dict[str, float] | None] = {}
    for (kind, figure), table in answered.questions.groupby(["kind", "figure"], sort=False):
        ours, bm25 = (table[name].to_numpy() for name in ("ours", "bm25"))
        left, right, gain = (metrics.mean(each, seed) for each in (ours, bm25, ours - bm25))
        name, asked = search_quality.name_of(kind, figure), int(np.isfinite(ours).sum())
        if left is None or right is None or gain is None:
            found[name] = None
            continue
        found[name] = {"ours": left["value"], "baseline": right["value"], "difference": gain["value"]}
        found[name] |= {"low": gain["low"], "high": gain["high"], "asked": asked}
    figures = answered.figures(seed)
    for name, target in search_quality.TARGETS.items():
        ours = figures[name] and figures[name]["value"]
        found[name] = None if ours is None else {"ours": ours, "baseline": target, "difference": ours - target}
    return found


def show(figures: dict[str, dict[str, float] | None], reliability: list[dict[str, float]]) -> None:
    print(f"{'':38}{'ours':>7}{'baseline':>10}   difference")
    for name, figure in figures.items():
        if figure is None:
            print(f"{name:38}{'-':>7}")
            continue
        row = f"{name:38}{figure['ours']:7.3f}{figure['baseline']:10.3f}   {figure['difference']:+.3f}"
        print(f"{row} ({figure['low']:+.3f} to {figure['high']:+.3f}), {figure['asked']} asked" if "low" in figure else row)
    print("score        answers    mean   right")
    for each in reliability:
        print(f"{each['low']:.1f} to {each['high']:.1f}{each['answers']:10}{each['score']:8.3f}{each['right']:8.3f}")


def main() -> int:
    args = parse_args()
    listings = listings_with_splits(args.data)
    recommender = Recommender(generations.current_generation(args.data / "index"))
    rows = draw_rows(np.flatnonzero(listings["split"] == args.split), args.sample, args.seed)
    queries = search_quality.read_queries(args.queries) if args.queries else None
    answered = search_quality.measure(recommender, listings, rows, args.seed, queries)
    print(f"{len(rows)} {args.split} listings, {len(answered.questions)} questions")
    figures = compare(answered, args.seed)
    show(figures, answered.reliability())
    search = search_quality.search_by(recommender, listings["product_id"])
    figures["ms"] = time_queries(search, answered.questions["words"].tolist(), args.seed)
    print(f"ms a question: {figures['ms']}")
    if args.lost:
        table = answered.questions[answered.questions["kind"] == args.lost]
        lost = table.assign(loss=table["bm25"] - table["ours"]).query("loss > 0").nlargest(SHOWN, "loss")
        print(lost[["words", "ours", "bm25"]].to_string(index=False, max_colwidth=100))
    print(json.dumps(figures))
    if args.split == "test" and args.queries:
        results.save("typed_queries", figures | {"listings": len(rows)}, results.command(args.data, args.queries))
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
