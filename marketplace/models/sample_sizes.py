"""Which figures of a small data set mean little or nothing: a sentence for each."""

import math
import sys
from collections.abc import Mapping, Sequence

import pandas as pd

FEW_TRAINED = 10  # training listings of a category: below, its words and photos are hardly known
FEW_MEASURED = 100  # listings that a share is measured on: below, chance moves it by more than ten points
FEW_PRICED = 100  # training listings with a price: each leaf of the price model's trees holds 40
LEAST_PRICED = 4  # validation listings with a price: the fewest that a conformal 80% needs
SHOWN = 5  # categories named in a sentence


def of_training(listings: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """What the figures of train.py cannot tell. listings: of listings_with_splits(); classes: the name of each label."""
    train, validation = (listings[listings["split"] == name] for name in ("train", "validation"))
    few = {name: count for name, count in count_classes(train["label"], classes).items() if count < FEW_TRAINED}
    priced, measured = int(train["price_plausible"].sum()), int(validation["price_plausible"].sum())
    found = [
        len(classes) == 1
        and f"there is one category only, {classes[0]}: figures of categories mean nothing; "
        "where its levels below differ, clean_tabular_data.py --category-depth 2 tells these apart",
        few
        and f"{len(few)} of {len(classes)} categories have fewer than {FEW_TRAINED} training listings ({_named(few)}): what is "
        "said of them is little better than a guess; give more such listings, or join categories",
        _of_measured(len(validation), "validation", "so the figures below, and what is chosen by them, mean little"),
        priced < FEW_PRICED
        and f"{_only(priced, 'training')} with a plausible price: the price model says little more than their median",
        measured < LEAST_PRICED
        and f"{_only(measured, 'validation')} with a plausible price, of {LEAST_PRICED} that are needed: the price range is not "
        "calibrated, and holds fewer than 80% of prices",
    ]
    return list(filter(None, found))


def of_evaluation(labels: pd.Series, classes: Sequence[str]) -> list[str]:
    """What the figures of evaluate.py cannot tell. labels: of the test listings that are measured."""
    none = {name: count for name, count in count_classes(labels, classes).items() if not count}
    found = [
        _of_measured(len(labels), "test", "whatever its interval says"),
        none
        and f"{len(none)} of {len(classes)} categories have no test listing ({', '.join(list(none)[:SHOWN])}{_more(none)}): "
        "macro-F1 leaves them out",
    ]
    return list(filter(None, found))


def of_ranking(judged: int, needed: int) -> list[str]:
    """What the scores of an index cannot tell. judged: validation listings; needed: those that the ranker is fitted from on."""
    if judged >= needed:
        return []
    return [
        f"{_only(judged, 'validation')}, of {needed} that are needed: the ranking keeps the weights set by hand, and its scores "
        "are no probabilities"
    ]


def margin_points(n: int) -> int:
    """Points by which a share of n may be off by chance, at most, in 95 of 100 cases: the normal approximation at a half."""
    return min(100, round(98 / math.sqrt(n))) if n else 100


def count_classes(labels: pd.Series, classes: Sequence[str]) -> dict[str, int]:
    counts = labels.value_counts()
    return {name: int(counts.get(label, 0)) for label, name in enumerate(classes)}


def tell(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def _of_measured(n: int, split: str, so: str) -> str:
    if n >= FEW_MEASURED:
        return ""
    return f"{_only(n, split)}: a share of them may be off by {margin_points(n)} points, {so}"


def _named(counts: Mapping[str, int]) -> str:
    fewest = sorted(counts.items(), key=lambda item: item[1])[:SHOWN]
    return ", ".join(f"{name} {count}" for name, count in fewest) + _more(counts)


def _more(counts: Mapping[str, int]) -> str:
    return f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""


def _only(n: int, split: str) -> str:
    return f"only {n} {split} listing{'' if n == 1 else 's'}"
