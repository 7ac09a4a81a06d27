"""Write what the pages repeat of code and measurements: tables between markers, docs/cli.md, and the demo's answers.

Reads   benchmarks/results/*.json, the table of stages, and the scripts' argument parsers
Writes  README.md and docs/*.md, each part between <!-- begin: NAME --> and <!-- end: NAME -->, and docs/cli.md whole
Run     make docs
"""

import argparse
import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from marketplace.files import stages

SCRIPTS = (
    *("clean_tabular_data.py", "clean_images.py", "dataset.py", "train.py", "extract_embeddings.py", "build_index.py"),
    *("evaluate.py", "api.py", "update.py", "hide.py", "recommend.py"),
)
WIDTH = 100  # columns of the command line's page
NOT_MEASURED = "not measured"


def result(name: str) -> dict:
    """What benchmarks/results.py saved of a benchmark's last full run."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def measured(*names: str) -> str:
    """The sentence below a table: the command, date, commit and processor of each run."""
    runs = [result(name) for name in names]
    return "\n".join(
        f"`{run['command']}`: {run['date']}, commit `{run['commit']}`, {run['processor']}.  " for run in runs
    ).rstrip()


# Quality


@dataclass(frozen=True)
class Compared:
    """A row of a table of quality: what is measured, the key of the figure, the baseline in words, digits after the point."""

    what: str
    key: str
    baseline: str
    digits: int = 3
    lower_is_better: bool = False
    target: bool = False  # the baseline is a value to be met, not to be beaten

    def cells(self, name: str) -> list[str]:
        figure = result(name)["figures"].get(self.key)
        if figure is None:
            return [self.what, NOT_MEASURED, self.baseline, ""]
        ours, baseline = (f"{figure[side]:.{self.digits}f}" for side in ("ours", "baseline"))
        if not self.target:
            better = figure["difference"] < 0 if self.lower_is_better else figure["difference"] > 0
            ours, baseline = (f"**{ours}**", baseline) if better else (ours, f"**{baseline}**")
        return [self.what, ours, f"{baseline} {self.baseline}", self.difference(figure)]

    def difference(self, figure: dict) -> str:
        text = f"{figure['difference']:+.{self.digits}f}"
        if "low" in figure:
            text += f" ({figure['low']:+.{self.digits}f} to {figure['high']:+.{self.digits}f})"
        if "relative" in figure:
            text += f", {figure['relative']:+.0%}"
        return text + (f", p = {figure['p']:.4f}" if "p" in figure else "")


BM25 = "plain BM25"
SEARCH = (  # what a shopper gets
    Compared("the rarest word of a listing's title finds it: MRR@10", "rarest_1_mrr_at_10", BM25),
    Compared("its two rarest words, likewise", "rarest_2_mrr_at_10", BM25),
    Compared("its three rarest words, likewise", "rarest_3_mrr_at_10", BM25),
    Compared("a whole title: that listing, or one of the same title, is first", "title_first", BM25),
    Compared("another word for the thing (settee, drapes): P@10", "typed_synonym_p_at_10", BM25),
    Compared("a misspelt word (soffa): P@10", "typed_typo_p_at_10", BM25),
    Compared("a need described (furniture to sleep on): P@10", "typed_described_p_at_10", BM25),
    Compared("nonsense is answered by nothing", "nonsense_answered_by_nothing", "asked for", target=True),
)
MORE_SEARCH = (
    Compared("a plain word for the thing (sofa): P@10", "typed_plain_p_at_10", BM25),
    Compared("a plural (sofas): P@10", "typed_plural_p_at_10", BM25),
    Compared("one to four words of a title, graded answers: nDCG@10", "words_ndcg_at_10", BM25),
    Compared("a leaf category's name, likewise", "category_ndcg_at_10", BM25),
    Compared("a word that titles hold, misspelt by a machine, likewise", "misspelt_ndcg_at_10", BM25),
    Compared(
        "a price above everything that holds the word is answered by nothing",
        "impossible_filter_answered_by_nothing",
        "asked for",
        target=True,
    ),
    Compared("questions with an answer are answered by nothing", "good_question_answered_by_nothing", "asked for", target=True),
    Compared("how far the score is from the share that is right", "score_calibration_error", "asked for", target=True),
)
WORDS = Compared('category from words ("Posted by" phrase removed): accuracy', "text_accuracy", "TF-IDF + linear SVM")
PRICE = Compared("price, £1 to £20,000: R² of log price", "price_log_r2", "TF-IDF, category + ridge")
EXPORT = (
    PRICE,
    Compared(
        "price: median error, as a share of the median price's",
        "price_error_over_median_baseline_ridge",
        "the same ridge",
        lower_is_better=True,
    ),
    Compared("price: share within the 80% range", "price_interval_coverage", "asked for", target=True),
    WORDS,
    Compared("category from words and photos: accuracy", "fused_accuracy", "words alone"),
    Compared("category from photos: accuracy", "photo_accuracy", "frozen backbone + logistic regression"),
    Compared("a photo's nearest is of its listing", "same_listing_hit_at_1", "PCA-whitened backbone"),
    Compared("one of a photo's nearest ten is of its listing", "same_listing_hit_at_10", "PCA-whitened backbone"),
    Compared("photos of the same category, MAP@R", "map_at_r", "frozen backbone", digits=4),
    Compared("graded ranking from photo and words, nDCG@10", "ndcg_at_10_both", "words alone", digits=4),
)
LABEL = Compared("label from the photo: accuracy", "photo_accuracy", "frozen backbone + logistic regression")
ALIKE = Compared("photos of the same label, MAP@R", "map_at_r", "frozen backbone")
CLOTHING = (LABEL, ALIKE, Compared("the same, beside another baseline", "map_at_r_whitened", "PCA-whitened backbone"))
HEADS = ["", "ours", "baseline", "difference (95%)"]
DEMO = (
    ("best answer to a photo is of its category, {photos} photos over HTTP", "photo_alone"),
    ("the same, asked with photo and title", "photo_and_title"),
)


SHARES = ("photo_alone", "photo_and_title", "nearest_by_colour_histogram")


def search_quality() -> str:
    """What a shopper gets; for the README."""
    heads = ["what is typed", *HEADS[1:]]
    return f"{table(heads, [row.cells('typed_queries') for row in SEARCH])}\n\n{measured('typed_queries')}"


def search_quality_in_full() -> str:
    heads = ["what is typed", *HEADS[1:]]
    return table(heads, [row.cells("typed_queries") for row in (*SEARCH, *MORE_SEARCH)])


def quality_export() -> str:
    """A run without --queries measures fewer rows of the search."""
    name = "quality_export"
    search = [row for row in SEARCH if row.key in result(name)["figures"]]
    return f"{table(HEADS, [row.cells(name) for row in (*search, *EXPORT)])}\n\n{measured(name)}"


def quality_clothing() -> str:
    return f"{table(HEADS, [row.cells('quality_clothing') for row in CLOTHING])}\n\n{measured('quality_clothing')}"


def demo_cells(what: str, key: str) -> list[str]:
    figures = result("demo")["figures"]
    baseline = figures["nearest_by_colour_histogram"]
    return [what.format(**figures), f"**{figures[key]:.3f}**", f"{baseline:.3f} nearest by colour histogram"]


def quality_demo() -> str:
    return f"{table(HEADS[:3], [demo_cells(*row) for row in DEMO])}\n\n{measured('demo')}"


def best_results() -> str:
    """Rows for the README, beside what a shopper gets."""
    clothes = "2,325 real photos of clothes, 17 labels: "
    export = "a real export of 4,266 listings: "
    named = [
        ("quality_clothing", clothes, LABEL),
        ("quality_export", export, PRICE),
        ("quality_export", export, WORDS),
    ]
    rows = [[where + cells[0], *cells[1:]] for name, where, row in named for cells in [row.cells(name)]]
    what, ours, baseline = demo_cells(*DEMO[0])
    return table(HEADS, [*rows, [f"the demo's drawings: {what}", ours, baseline, ""]])


# Speed

SPEED = (
    (
        "clean_images",
        "12-megapixel JPEGs cleaned, a core-second, over full decode and bicubic resize",
        "{large_vs_baseline:.1f}x",
    ),
    ("clean_images", "400-pixel JPEGs, likewise", "{small_vs_baseline:.2f}x"),
    ("clean_images", "two workers over one, 400-pixel JPEGs", "{small_two_workers_vs_one:.2f}x"),
    ("clean_images", "core-seconds with a copy to look at over without, 400-pixel JPEGs", "{small_with_display_vs_without:.1f}x"),
    ("clean_images", "the same, 12-megapixel JPEGs", "{large_with_display_vs_without:.1f}x"),
    (
        "memory",
        "memory that clean_images.py takes for {photos:,} photos, above its start: a first run; after 1% changed; nothing to do",
        "{first_mb:.0f} MB; {update_mb:.0f} MB; {nothing_to_do_mb:.0f} MB",
    ),
    ("memory", "the same for each photo beyond 200,000, after 1% changed", "{update_bytes_per_further_photo:.0f} B"),
    (
        "memory",
        "time of the processor a photo, but for its cleaning: a first run; after 1% changed; nothing to do",
        "{first_us_per_photo:.0f} µs; {update_us_per_photo:.0f} µs; {nothing_to_do_us_per_photo:.0f} µs",
    ),
    (
        "extract_embeddings",
        "photos embedded with ResNet-50 in 8 bits at 224 px, decoding included, over torch in fp32, one photo at a time",
        "{vs_baseline:.1f}x",
    ),
    ("extract_embeddings", "the same over the model alone on ready tensors", "{vs_model_alone:.2f}x"),
    ("extract_embeddings", "8 bits against fp32, EfficientNet-Lite0 on real photos: mean cosine", "{int8_mean_cosine:.4f}"),
    ("extract_embeddings", "share of the ten nearest photos that 8 bits keep", "{int8_neighbours_kept:.3f}"),
    ("extract_embeddings", "peak memory at 100,000 photos over that at 10,000", "{rss_100k_vs_10k:.2f}x"),
    ("training", "an epoch with the backbone run anew, over one on cached features", "{uncached_epoch_over_cached:,.0f}x"),
    ("search", "recall@10 among {vectors:,.0f} vectors of 256, one thread", "{recall_at_10:.3f}"),
    ("search", "a flat index's p50 over ours", "{flat_p50_over_p50:.0f}x"),
    ("search", "p50 at 1,000,000 vectors over that at 100,000", "{p50_1m_over_100k:.2f}x"),
    ("search", "bytes a vector in the index", "{bytes_per_vector:.0f}"),
    ("search", "lowest recall under filters that keep 50% down to 10 rows", "{filtered_recall_min:.3f}"),
    ("search", "lowest recall under filters that keep 1% or less", "{filtered_recall_min_to_1_percent:.3f}"),
    ("search", "p99 under the slowest filter over the unfiltered p99", "{filtered_p99_over_p99:.1f}x"),
    ("search", "peak memory of building over the raw vectors", "{build_peak_over_raw:.2f}x"),
    ("search", "photos' own vectors, perturbed to as many: recall@10", "{real_recall_at_10:.3f}"),
    (
        "search",
        "a flat index's p50 over ours on them; on 100,000",
        "{real_flat_p50_over_p50:.0f}x; {real_flat_p50_over_p50_100k:.1f}x",
    ),
    ("search", "lowest recall under such filters on them", "{real_filtered_recall_min:.3f}"),
    ("scale", "clean_tabular_data.py: time a row at 1,000,000 listings over that at 100,000", "{clean_time_per_row:.2f}x"),
    ("scale", "dataset.py, likewise", "{dataset_time_per_row:.2f}x"),
    ("scale", "build_index.py, likewise", "{build_time_per_row:.2f}x"),
    ("scale", "an update after 1% of a million came, went or was edited, over a full build", "{update_over_build:.1%}"),
    (
        "update",
        "{new} new listings among {listings:,}, each with a photo, beside a serving API: until a search over HTTP finds them",
        "{update[found]:.0f} s, {update[cpu]:.0f} s of the processor",
    ),
    (
        "update",
        "likewise by the stages' scripts one after the other; a full build, but its training and embedding",
        "{scripts[found]:.0f} s, {scripts[cpu]:.0f} s of the processor; {build_seconds:,.0f} s",
    ),
    ("update", "an update that finds nothing new", "{nothing_new_seconds:.0f} s"),
    ("scale", "peak memory of a full build over the photos' raw vectors", "{build_peak_over_vectors:.1f}x"),
    ("api", "a photo query with ResNet-50 in fp32, one client: p50", "{p50_ms:.0f} ms"),
    ("api", "the same over the work in process", "{p50_over_in_process:.2f}x"),
    ("api", "32 clients: CPU a query over that in process", "{cpu_over_in_process:.2f}x"),
    ("api", "32 clients: p99; errors", "{p99_of_32_clients_ms:,.0f} ms; {errors:.0f}"),
    ("api", "{listings:,.0f} listings, queries a CPU second by title; p99", "{title_qps:.0f}; {title_p99_ms:.0f} ms"),
    ("api", "{listings:,.0f} listings, queries a CPU second by listing; p99", "{similar_qps:.0f}; {similar_p99_ms:.0f} ms"),
    (
        "recommend",
        "`recommend.py` at {listings:,.0f} listings, one after the other over HTTP in brackets: listings a second",
        "{bulk_a_second:,.0f} ({http_a_second:,.0f}): {times_as_many:.1f}x",
    ),
    ("recommend", "CPU time a listing, likewise", "{bulk_cpu_ms:.1f} ms ({http_cpu_ms:.1f} ms)"),
    (
        "api",
        "mixed load, a new index every 20 s: answers; failed or mixed",
        "{mixed_answers:,.0f}; {mixed_failures:.0f}",
    ),
    ("api", "memory at the end of that over memory after a minute", "{rss_growth:.2f}x"),
    ("api", "memory of one more worker; ResNet-50 in fp32 in it", "{extra_worker_mb:.0f} MB; {model_mb:.0f} MB"),
    (
        "patterns",
        "{patterns:.0f} patterns on {pattern_texts:,.0f} texts made to be hard: steepest growth with length, as a power",
        "{pattern_power:.2f} (`{pattern_steepest}`)",
    ),
    (
        "patterns",
        "{functions:.0f} functions that read texts, likewise",
        "{function_power:.2f} (`{function_steepest}`)",
    ),
    ("patterns", "the slowest of them on {characters:,.0f} characters", "{function_slowest_s:.1f} s (`{function_slowest}`)"),
    ("fuzz", "{requests:,.0f} hostile requests: server errors", "{server_errors:.0f}"),
    ("fuzz", "their p99 over that of a calm service", "{p99_over_calm:.2f}x"),
    ("fuzz", "memory after them over that before", "{rss_growth:.2f}x"),
    ("fuzz", "good photos beside 2,000 uploads made to take time and memory: p99", "{good_p99_ms:,.0f} ms"),
    (
        "fuzz",
        "memory after those over that before, the service's; its decoders'",
        "{hostile_rss_growth:.2f}x; {decoders_pss_growth:.2f}x",
    ),
    ("fuzz", "memory of one process that decodes", "{decoder_pss_mb:.0f} MB"),
    (
        "slow_clients",
        "of ten photos beside 1,100 half-open connections, answered: before there were limits; now",
        "{before_answers_beside_half_open}; {now_answers_beside_half_open}",
    ),
    (
        "slow_clients",
        "memory beside 60 uploads of 19 MB that stay unfinished: before; now",
        "{before_half_photos_mb:,} MB; {now_half_photos_mb:,} MB",
    ),
    ("slow_clients", "until the service stops beside them: before; now", "{before_stop}; {now_stop}"),
    ("kills", "{kills:,} random kills in all stages and while publishing: half states, or other bytes at the end", "{wrong}"),
)


def redaction() -> str:
    """What redaction finds and leaves, by mark, beside phonenumbers."""
    figures = result("redaction")["figures"]
    rows = [[f"spellings of `{mark}`", share(counts)] for mark, counts in figures["found"].items()]
    rows.append(["innocent texts that stay", share(figures["innocent"])])
    for name, counts in figures.get("phonenumbers", {}).items():
        rows.append([f"`phonenumbers`, {name}: spellings of `[phone]`", share(counts["found"])])
        rows.append([f"`phonenumbers`, {name}: innocent texts that stay", share(counts["innocent"])])
    return f"{table(['texts', 'right'], rows)}\n\n{measured('redaction')}"


def share(counts: list[int]) -> str:
    """ "113 of 118 (95.8%)"."""
    right, total = counts
    return f"{right} of {total} ({right / total:.1%})"


WAYS = ("build_index.py", "flat", "hnswlib", "usearch")


def filled(template: str, figures: dict) -> str:
    """The template with the figures put in; NOT_MEASURED when the last run, with other flags, lacks one."""
    try:
        return template.format(**figures)
    except KeyError:
        return NOT_MEASURED


def speed() -> str:
    return figures_of(SPEED)


def figures_of(rows: Sequence[tuple[str, str, str]]) -> str:
    """rows: a benchmark, what it measures, the figure."""
    ran = [row for row in rows if (ROOT / "benchmarks" / "results" / f"{row[0]}.json").exists()]  # the others have yet to run
    rows = [[filled(what, result(name)["figures"]), filled(figure, result(name)["figures"])] for name, what, figure in ran]
    return f"{table(['what', 'figure'], rows)}\n\n{measured(*dict.fromkeys(name for name, *_ in ran))}"


LARGE = "scale_3000000"
BEYOND = (
    (
        LARGE,
        "clean_tabular_data.py: time a row at 3,000,000 listings over that at 100,000; seconds",
        "{clean_time_per_row:.2f}x; {large_clean:,.0f}",
    ),
    (LARGE, "dataset.py, likewise", "{dataset_time_per_row:.2f}x; {large_dataset:,.0f}"),
    (LARGE, "build_index.py, likewise", "{build_time_per_row:.2f}x; {large_build:,.0f}"),
    (LARGE, "their peak memory at 3,000,000", "{large_clean_gb:.1f} GB; {large_dataset_gb:.1f} GB; {large_build_gb:.1f} GB"),
    (
        LARGE,
        "of that of build_index.py its own, not pages of files: in all; a listing",
        "{large_build_own_gb:.1f} GB; {build_own_bytes_per_listing:,} B",
    ),
    (LARGE, "the index, one generation, with the vectors", "{large_index_gb:.0f} GB"),
    ("cluster", "photos cleaned on {cores} cores, over Ray: time over that of the pool of processes", "{ray_vs_pool:.2f}x"),
    ("cluster", "Ray's start", "{ray_start_s:.1f} s"),
    (
        "milvus",
        "a search among {rows:,} vectors, one client, in Milvus; in FAISS: p50",
        "{milvus[all][p50_ms]:.1f} ms; {faiss[all][p50_ms]:.1f} ms",
    ),
    ("milvus", "the same where a tenth passes a filter", "{milvus[tenth][p50_ms]:.1f} ms; {faiss[tenth][p50_ms]:.1f} ms"),
    ("milvus", "the same where a hundredth does", "{milvus[hundredth][p50_ms]:.1f} ms; {faiss[hundredth][p50_ms]:.1f} ms"),
    (
        "milvus",
        "recall@10 of all three",
        "{milvus[all][recall]:.3f}, {milvus[tenth][recall]:.3f}, {milvus[hundredth][recall]:.3f}; "
        "{faiss[all][recall]:.3f}, {faiss[tenth][recall]:.3f}, {faiss[hundredth][recall]:.3f}",
    ),
)


def beyond_one_machine() -> str:
    return figures_of(BEYOND)


SIZING = (  # a template's benchmark, what is to be sized, what one unit takes
    ("api", "queries by words, {listings:,} listings", "{title_qps:,} a core-second"),
    ("api", "listings like one, of as many", "{similar_qps:,} a core-second"),
    ("api", "a photo query, ResNet-50 in fp32", "{p50_ms:.0f} ms of the processor"),
    ("api", "one more worker; ResNet-50 in fp32 in it", "{extra_worker_mb} MB; {model_mb} MB"),
    ("fuzz", "a decoder: one a core, and one more for two, of each worker", "{decoder_pss_mb:.0f} MB"),
    ("slow_clients", "the service beside 60 uploads of 19 MB that are not whole", "{now_half_photos_mb} MB"),
    ("search", "a photo's vector of 256 in the index, mapped from the disk", "{bytes_per_vector:.0f} bytes"),
    ("scale", "peak memory of build_index.py over the photos' raw vectors (1 KB each at 256)", "{build_peak_over_vectors}x"),
    ("scale", "an update of 1% over a full build", "{update_over_build:.1%}"),
)


def sizing() -> str:
    """What one unit of load takes, for who chooses a machine."""
    rows = [[filled(what, result(name)["figures"]), filled(figure, result(name)["figures"])] for name, what, figure in SIZING]
    return table(["what", "takes"], rows)


GPU = (
    (
        "{training[batch]} photos a step: the whole network, ready photos, fp32 (TF32 in convolutions)",
        "{training[all][fp32][photos_per_s]:,}",
    ),
    ("the same in bf16", "{training[all][bf16][photos_per_s]:,}"),
    (
        "the same compiled, which takes {compiled[all][first_epoch_s]:.0f} s; training does not",
        "{compiled[all][photos_per_s]:,}",
    ),
    (
        "{training[larger_batch]} photos a step, bf16",
        "{training[all_larger_batch][photos_per_s]:,}",
    ),
    (
        "loss at the end: fp32, and with two other seeds; bf16",
        "{training[all][fp32][loss]:.3f}, {training[fp32_losses_of_other_seeds][0]:.3f}, "
        "{training[fp32_losses_of_other_seeds][1]:.3f}; {training[all][bf16][loss]:.3f}",
    ),
    (
        "a head alone, ready photos: fp32; bf16",
        "{training[head][fp32][photos_per_s]:,}; {training[head][bf16][photos_per_s]:,}",
    ),
    ("its loss at the end, likewise", "{training[head][fp32][loss]:.3f}; {training[head][bf16][loss]:.3f}"),
    (
        "embedding: the model alone on decoded photos, {embedding[batch]} a pass",
        "{embedding[model_alone_photos_per_s]:,}",
    ),
    (
        "JPEGs decoded by {embedding[cores]} processes on as many cores, without the model",
        "{embedding[decoding_alone_photos_per_s]:,}",
    ),
    ("from JPEGs to vectors, decoding included, over the model alone", "{embedding[over_model_alone]:.2f}x"),
    (
        "cosine to a CPU's fp32 vectors: mean; least; between photos",
        "{embedding[mean_cosine_to_fp32]:.5f}; {embedding[least_cosine_to_fp32]:.5f}; "
        "{embedding[mean_cosine_between_photos]:.2f}",
    ),
    ("share of the ten nearest photos that stay so", "{embedding[neighbours_kept]:.3f}"),
    ("one photo through the model", "{embedding[one_photo_ms]:.1f} ms"),
    ("a photo query through the API: p50", "{api[p50_ms]:.1f} ms"),
    (
        "{api[clients]} clients, one worker: photos a second; p99; errors",
        "{api[photos_per_s]:,.0f}; {api[clients_p99_ms]:,.0f} ms; {api[errors]}",
    ),
    ("from the start of the API to its first answer", "{api[start_s]:.0f} s"),
    ("memory on the card: at the start; under that load", "{api[card_mb]:,} MB; {api[card_mb_under_load]:,} MB"),
)
NOT_RUN = "Not run on a GPU."


def gpu() -> str:
    """The figures of a GPU, in photos a second where nothing else is said; NOT_RUN as long as there are none."""
    if not (ROOT / "benchmarks" / "results" / "gpu.json").exists() or result("gpu")["figures"]["device"] != "cuda":
        return NOT_RUN
    figures = result("gpu")["figures"]
    rows = [[filled(what, figures), filled(figure, figures)] for what, figure in GPU]
    training = figures.get("training", {})
    for batch, found in training.get("from_files", {}).items():
        both = f"{found['all_photos_per_s']:,}; {found['head_photos_per_s']:,}"
        what = (
            f"training from JPEGs, {training['workers']} decoding processes, {batch} a step: the whole network; a head's features"
        )
        rows.append([what, both])
    for workers, rate in figures.get("embedding", {}).get("from_files_photos_per_s", {}).items():
        rows.append([f"from JPEGs to vectors, {workers} decoding processes", f"{rate:,}"])
    card = "{card}, {card_gb} GB; {cores} cores; torch {torch}.".format(**figures)
    return f"{table(['ResNet-50, 224 px', 'photos a second'], rows)}\n\n{card}\n\n{measured('gpu')}"


def search_peers() -> str:
    """Milliseconds a query at equal recall, by number of vectors."""
    by_size = result("search")["figures"].get("p50_ms", {})
    ways = [way for way in WAYS if any(way in times for times in by_size.values())]
    rows = [
        [f"{int(size):,}", *(f"{times[way]:.2f}" if way in times else NOT_MEASURED for way in ways)]
        for size, times in by_size.items()
    ]
    return table(["vectors", *ways], rows)


# Stages and flags


def stage_seconds() -> str:
    kept = result("stages")
    figures = kept["figures"]
    cells = [[f"`{name}/`", f"{seconds:g}"] for name, seconds in figures["seconds"].items()]
    heads = ["stage", f"seconds for {figures['listings']:,} listings, {figures['photos']:,} photos"]
    return f"{table(heads, cells)}\n\n{measured('stages')}"


def stage_table() -> str:
    """What each stage reads and writes, from the table that the stages themselves follow."""
    rows = []
    for name, contract in getattr(stages, "STAGES", {}).items():
        raw = [f"{what} (`{flag}`)" for flag, what in contract.raw.items()]
        read = [f"`{reads.stage}/`" for reads in contract.reads]
        wrote = ", ".join(f"`{file}`" for file in contract.writes)
        rows.append([f"`data/{name}/`", f"`{contract.script}`: {contract.does}", ", ".join([*raw, *read]), wrote])
    return table(["folder", "script", "reads", "writes"], rows)


class _Parser(Exception):
    """Carries a script's parser out of its parse_args."""


def parser_of(script: str) -> argparse.ArgumentParser:
    def give(parser: argparse.ArgumentParser, *_):
        raise _Parser(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", give):
        try:
            importlib.import_module(script.removesuffix(".py")).parse_args([])
        except _Parser as carried:
            return carried.args[0]
    raise AssertionError(f"{script} parses no arguments")


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Flag, with what it takes -> what --help says of it; the words alone, which every Python and terminal formats alike."""
    flags = {}
    for action in parser._actions:  # argparse has no public list of them
        name = action.option_strings[-1] if action.option_strings else action.dest
        takes = "" if action.nargs == 0 else " {" + ",".join(action.choices) + "}" if action.choices else f" {_metavar(action)}"
        flags[name + takes] = " ".join((action.help or "").split()) % (vars(action) | {"prog": parser.prog})
    return flags


def _metavar(action: argparse.Action) -> str:
    return action.metavar or action.dest.upper()


def command_line() -> str:
    """docs/cli.md."""
    parts = [
        "# The command line",
        "Generated by `make docs` from the scripts' own argument parsers: `python SCRIPT --help` says the same.\n"
        "Every script takes `--data`, the folder below which everything lives.",
    ]
    for script in SCRIPTS:
        parser = parser_of(script)
        parts.append(f"## {script}")
        parts.append(textwrap.fill(parser.description, WIDTH, break_on_hyphens=False))
        items = [
            textwrap.fill(f"- `{flag}`: {says}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
            for flag, says in flags_of(parser).items()
            if not flag.startswith("--help")
        ]
        parts.append("\n".join(items))
    return "\n\n".join(parts) + "\n"


# What the demo answers


def example(name: str) -> Callable[[], str]:
    """A command and its answer, as benchmarks/demo_answers.py saved them."""

    def block() -> str:
        asked = result("demo")["figures"]["examples"][name]
        return f"```console\n$ {asked['command']}\n{asked['answer']}\n```"

    return block


def demo_end() -> str:
    """What `make demo` prints at its end."""
    figures = result("demo")["figures"]
    asked = figures["examples"]["demo"]
    says = f"Of {figures['photos']} test photos, those whose best answer is of their own category, their own listing left out:"
    shares = [f"{figures[key]:8.3f}  {key.replace('_', ' ')}" for key in SHARES]
    return "\n".join(["```console", f"$ {asked['command']}", asked["answer"], "", says, *shares, "```"])


PARTS: dict[str, Callable[[], str]] = {
    "search quality": search_quality,
    "search quality in full": search_quality_in_full,
    "best results": best_results,
    "quality export": quality_export,
    "quality clothing": quality_clothing,
    "quality demo": quality_demo,
    "speed": speed,
    "beyond one machine": beyond_one_machine,
    "sizing": sizing,
    "redaction": redaction,
    "search peers": search_peers,
    "gpu": gpu,
    "stage seconds": stage_seconds,
    "stages": stage_table,
    "demo": demo_end,
    **{f"example {name}": example(name) for name in ("health", "photo", "words", "predict", "refused")},
}
PART = re.compile(r"(<!-- begin: (.+?) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def render(page: str) -> str:
    """A page with every part between markers as it should be."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", page)


def pages() -> dict[Path, str]:
    """Every page -> its text as it should be."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    rendered = {path: render(path.read_text(encoding="utf-8")) for path in paths if path.name != "cli.md"}
    return rendered | {ROOT / "docs" / "cli.md": command_line()}


def main() -> int:
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
