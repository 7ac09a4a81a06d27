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
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from dataset import SPLITS, listings_with_splits
from evaluate import draw_rows, words_of_listings
from marketplace import metrics
from marketplace.files import cli, generations
from marketplace.retrieval import search_quality
from marketplace.retrieval.filters import Filters
from marketplace.retrieval.questions import KINDS, RAREST, ask
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
    parser.add_argument("--lost", choices=KINDS, help=f"show {SHOWN} questions of a kind that BM25 answers better")
    return parser.parse_args()


def compare_questions(
    ours: pd.DataFrame, theirs: pd.DataFrame, seed: int
) -> list[tuple[str, str, dict | None, dict | None, dict | None]]:
    """(what, figure, ours, BM25's, the difference) of each kind of question."""
    rows = []
    for kind in KINDS:
        columns = {"title": ["first"]}.get(kind, ["reciprocal_rank"] if kind in RAREST else ["ndcg_at_10"])
        for column in columns:
            left, right = (table.loc[table["kind"] == kind, column].to_numpy() for table in (ours, theirs))
            rows.append((kind, column, *(metrics.mean(values, seed) for values in (left, right, left - right))))
    return rows


def main() -> int:
    args = parse_args()
    listings = listings_with_splits(args.data)
    recommender = Recommender(generations.current_generation(args.data / "index"))
    words = words_of_listings(listings, recommender)
    rows = draw_rows(np.flatnonzero(listings["split"] == args.split), args.sample, args.seed)
    searches = {"ours": search_quality.search_by(recommender, listings["product_id"]), "BM25": search_quality.PlainBM25(words)}
    ours, bm25 = searches.values()
    questions = ask(words, rows, args.seed)
    started_s = time.perf_counter()
    asked, answered = search_quality.answer_questions(ours, words, questions)
    asked_by_bm25, _ = search_quality.answer_questions(bm25, words, questions)
    table = compare_questions(asked, asked_by_bm25, args.seed)
    good = [asked["answers"].to_numpy() == 0]
    if args.queries:
        queries = search_quality.read_queries(args.queries)
        rights = list(search_quality.right_answers(queries, listings["name"], listings["category"]))
        typed, typed_by_bm25 = (search_quality.answer_queries(search, queries, rights) for search in searches.values())
        good.append(typed["answers"].to_numpy() == 0)
        for kind in queries["kind"].unique():
            left, right = (each.loc[each["kind"] == kind, "p_at_10"].to_numpy() for each in (typed, typed_by_bm25))
            table.append((f"typed: {kind}", "p_at_10", *(metrics.mean(v, args.seed) for v in (left, right, left - right))))
    print(
        f"\n{args.split}: {len(rows)} listings, {len(questions)} questions\n{'':18}{'figure':17}{'ours':>7}{'BM25':>8}   difference"
    )
    for what, name, left, right, gain in table:
        if left is not None:
            between = f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
            print(f"{what:18}{name:17}{left['value']:7.3f}{right['value']:8.3f}   {between}")
    strange = [(text, Filters()) for text in search_quality.nonsense(words)]
    figures = {f"{what} {name}": [left and left["value"], right and right["value"]] for what, name, left, right, _ in table}
    for what, asked_for in (
        ("nonsense", strange),
        ("impossible filter", search_quality.impossible(words, listings["price"].to_numpy(), rows, args.seed)),
    ):
        nothing = search_quality.share_answered_by_nothing(ours, asked_for)
        figures[what] = round(float(nothing.mean()), 4)
        print(f"{what:18}{'by nothing':17}{nothing.mean():7.3f}   of {len(nothing)}")
    emptied = np.concatenate(good)
    figures["good questions emptied"] = round(float(emptied.mean()), 4)
    print(f"{'good questions':18}{'by nothing':17}{emptied.mean():7.3f}   of {len(emptied)}")
    show_reliability(answered)
    figures["ms"] = time_queries(ours, [question.words for question in questions], args.seed)
    print(f"ms a question: {figures['ms']}; {time.perf_counter() - started_s:.0f} s in all")
    if args.lost:
        show_lost(questions, asked, asked_by_bm25, args.lost)
    print(json.dumps(figures))
    return 0


def show_reliability(answered: pd.DataFrame) -> None:
    print("score        answers    mean   right")
    for each in metrics.reliability(answered["score"].to_numpy(), answered["right"].to_numpy()):
        print(f"{each['low']:.1f} to {each['high']:.1f}{each['answers']:10}{each['score']:8.3f}{each['right']:8.3f}")
    scores, right = answered["score"].to_numpy(), answered["right"].to_numpy(float)
    print(f"calibration error {metrics.calibration_error(scores, right, np.ones(len(right))):.3f}")


def time_queries(search: search_quality.Search, words: list[str], seed: int, size: int = 300) -> dict[str, float]:
    """Milliseconds of single questions, on one thread."""
    taken = []
    for position in np.random.default_rng(seed).permutation(len(words))[:size]:
        started_s = time.perf_counter()
        search(words[position], Filters())
        taken.append((time.perf_counter() - started_s) * 1000)
    return {f"p{share}": round(float(np.percentile(taken, share)), 1) for share in (50, 99)}


def show_lost(questions: list, asked: pd.DataFrame, asked_by_bm25: pd.DataFrame, kind: str) -> None:
    column = "reciprocal_rank" if kind in (*RAREST, "title") else "ndcg_at_10"
    lost = asked_by_bm25[column] - asked[column]
    worst = lost[(asked["kind"] == kind) & (lost > 0)].sort_values(ascending=False, kind="stable").index[:SHOWN]
    for i in worst:
        print(f"{asked[column][i]:.2f} {asked_by_bm25[column][i]:.2f}  {questions[i].words[:100]}")


if __name__ == "__main__":
    sys.exit(main())
