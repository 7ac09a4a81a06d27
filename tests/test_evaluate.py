import dataclasses
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import build_index
import evaluate
from marketplace import metrics
from marketplace.cleaning import listings
from marketplace.files import atomic, reading, stages
from marketplace.files.stages import StageError
from marketplace.models import embedding, text_model
from marketplace.retrieval.ranking import KINDS
from tests.conftest import stamp

KEYS = {
    *("photo_accuracy", "text_accuracy", "text_macro_f1", "fused_accuracy"),
    *("price_log_r2", "price_error_over_median_baseline", "price_interval_coverage"),
    *("category_p_at_1", "category_p_at_1_learned", "category_p_at_10", "map_at_r"),
    *("same_listing_hit_at_1", "same_listing_hit_at_10"),
    *("category_p_at_1_frozen_trunk", "category_p_at_10_frozen_trunk", "map_at_r_frozen_trunk"),
    *("same_listing_hit_at_1_frozen_trunk", "same_listing_hit_at_10_frozen_trunk"),
    *("category_p_at_1_whitened_trunk", "category_p_at_10_whitened_trunk", "map_at_r_whitened_trunk"),
    *("same_listing_hit_at_1_whitened_trunk", "same_listing_hit_at_10_whitened_trunk"),
    *("ndcg_at_10_photo", "ndcg_at_10_text", "ndcg_at_10_both", "ndcg_both_over_best_single_p"),
    "accuracy_by_photo_leaky_split",
}
OF_QUESTIONS = {
    *("rarest_1_mrr_at_10", "rarest_2_mrr_at_10", "rarest_3_mrr_at_10", "title_first"),
    *("words_ndcg_at_10", "category_ndcg_at_10", "misspelt_ndcg_at_10"),
}
OF_CLOSENESS = {"nonsense_answered_by_nothing", "good_question_answered_by_nothing", "score_calibration_error"}
OUTPUTS = ("report.json", "report.md", "gallery.png", "confusion.png", "hardest.png", "listings.csv", "questions.csv")
OF_PHOTOS = {
    name for name in KEYS if name.startswith(("photo_", "accuracy_by_photo", "category_p", "map_at_r", "same_listing", "ndcg"))
}


@pytest.fixture(scope="module")
def measured(demo_dir, tmp_path_factory):
    """The small synthetic pipeline, copied and evaluated."""
    data_dir = tmp_path_factory.mktemp("evaluated") / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "evaluation"))
    assert evaluate.main(["--data", str(data_dir)]) == 0
    return data_dir


@pytest.fixture
def copied(measured, tmp_path):
    shutil.copytree(measured, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def report(measured):
    return reading.read_json(measured / "evaluation" / "report.json")


@pytest.fixture(scope="module")
def catalogue(measured):
    return evaluate.read(measured, max_queries=1000, seed=0)


@pytest.fixture(scope="module")
def table(measured):
    """The measured listings, one a row."""
    return pd.read_csv(measured / "evaluation" / "listings.csv")


def fails(arguments, capsys) -> str:
    capsys.readouterr()
    assert evaluate.main(arguments) == 1
    return capsys.readouterr().err


def test_the_report_has_every_figure_within_its_interval(report):
    assert not (KEYS | OF_CLOSENESS | OF_QUESTIONS | {f"{name}_bm25" for name in OF_QUESTIONS}).difference(report)
    for name, figure in report.items():
        if name in ("counts", "reliability", "warnings") or figure is None:
            continue
        assert set(figure) == {"value", "low", "high"}, name
        assert figure["low"] <= figure["value"] <= figure["high"], name
        if "price" not in name:
            assert figure["low"] >= 0 and figure["high"] <= 1, name


def test_every_test_listing_is_measured_and_no_other(measured, table, report):
    splits = reading.read_csv(measured / "dataset" / "listings.csv").set_index("product_id")["split"]
    assert set(table["product_id"]) == set(splits.index[splits == "test"])
    assert report["counts"]["measured"] == report["counts"]["test_listings"] == len(table)


def test_a_listing_counts_once_and_the_mean_of_its_photos_answers_for_it(measured, table, report):
    training = reading.read_csv(measured / "dataset" / "training_data.csv").astype({"label": int})
    rows = training["split"] == "test"
    means = pd.DataFrame(np.load(measured / "embeddings" / "probabilities.npy")[rows]).groupby(
        training[rows]["product_id"].to_numpy()
    )
    labels = training[rows].groupby("product_id")["label"].first()
    right = means.mean().idxmax(axis=1) == labels
    assert report["photo_accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-6)
    assert table.set_index("product_id")["photo_right"].dropna().to_dict() == right.astype(float).to_dict()
    ranked = table.dropna(subset=["ndcg_at_10_photo", "ndcg_at_10_text"])  # compared where there are both kinds of evidence
    for name in OF_PHOTOS & set(table):
        measured_rows = ranked if name.startswith("ndcg") else table
        assert report[name]["value"] == pytest.approx(measured_rows[name].mean(), abs=1e-6), name


def test_the_words_of_the_test_listings_are_what_the_text_model_is_asked(measured, table, report):
    products = listings.read_products(measured / "tabular").set_index("product_id").loc[table["product_id"]]
    models = text_model.TableModels.load(measured / "model")
    guess = models.category_probabilities(listings.texts(products)).argmax(axis=1)
    assert table["text_guess"].tolist() == guess.tolist()
    assert report["text_accuracy"]["value"] == pytest.approx((guess == products["label"]).mean(), abs=1e-6)


def test_prices_are_compared_with_the_training_listings_median(measured, table, report):
    products = listings.read_products(measured / "tabular").set_index("product_id")
    split = reading.read_csv(measured / "dataset" / "listings.csv").set_index("product_id")["split"]
    train = products[(products.index.map(split) == "train") & products["price_plausible"] & (products["price"] > 0)]
    priced = table[(table["price"] >= 1) & (table["price"] <= 20_000)]
    errors = [np.median(abs(priced["price"] - guess)) for guess in (priced["price_median"], train["price"].median())]
    assert report["price_error_over_median_baseline"]["value"] == pytest.approx(errors[0] / errors[1], abs=1e-6)
    logs = np.log10(priced[["price", "price_median"]].to_numpy())
    r2 = 1 - ((logs[:, 0] - logs[:, 1]) ** 2).sum() / ((logs[:, 0] - logs[:, 0].mean()) ** 2).sum()
    assert report["price_log_r2"]["value"] == pytest.approx(r2, abs=1e-6)
    inside = (priced["price_low"] <= priced["price"]) & (priced["price"] <= priced["price_high"])
    assert report["price_interval_coverage"]["value"] == pytest.approx(inside.mean(), abs=1e-6)


def test_retrieval_leaves_out_the_cluster_of_the_query(measured, table):
    """Nearest neighbours by hand, from the files."""
    training = reading.read_csv(measured / "dataset" / "training_data.csv")
    vectors = np.load(measured / "embeddings" / "vectors.npy")
    right = {}
    for row in np.flatnonzero(training["split"] == "test"):
        cosines = vectors @ vectors[row]
        cosines[training["cluster"] == training["cluster"][row]] = -2
        right.setdefault(training["product_id"][row], []).append(training["label"][cosines.argmax()] == training["label"][row])
    expected = {product_id: np.mean(values) for product_id, values in right.items()}
    assert table.set_index("product_id")["category_p_at_1"].dropna().to_dict() == pytest.approx(expected)


def test_the_nearest_photo_is_looked_for_among_training_and_validation_photos_too(measured, table):
    """By hand, from the files."""
    training = reading.read_csv(measured / "dataset" / "training_data.csv")
    vectors = np.load(measured / "embeddings" / "vectors.npy")
    right = {}
    for row in np.flatnonzero(training["split"] == "test"):
        cosines = np.where(training["split"] == "test", -2, vectors @ vectors[row])
        right.setdefault(training["product_id"][row], []).append(training["label"][cosines.argmax()] == training["label"][row])
    expected = {product_id: np.mean(values) for product_id, values in right.items()}
    assert table.set_index("product_id")["category_p_at_1_learned"].dropna().to_dict() == pytest.approx(expected)


def test_every_question_is_listed_and_its_figures_are_their_means(measured, table, report):
    questions = reading.read_csv(measured / "evaluation" / "questions.csv").astype({"ours": float, "bm25": float})
    assert set(questions.loc[questions["kind"] != "category", "product_id"]) <= set(table["product_id"])
    assert (questions["kind"] == "title").sum() == len(table)
    for (kind, figure), rows in questions.groupby(["kind", "figure"]):
        assert report[f"{kind}_{figure}"]["value"] == pytest.approx(rows["ours"].mean(), abs=1e-6)
        assert report[f"{kind}_{figure}_bm25"]["value"] == pytest.approx(rows["bm25"].mean(), abs=1e-6)
    assert report["good_question_answered_by_nothing"]["value"] == pytest.approx((questions["answers"] == "0").mean(), abs=1e-6)
    text = (measured / "evaluation" / "report.md").read_text()
    shown = report["title_first"]
    assert f"| a whole title: that listing first | {shown['value']:.3f} ({shown['low']:.3f} to {shown['high']:.3f}) | " in text
    for bin_ in report["reliability"]:
        assert f"| {bin_['low']:.1f} to {bin_['high']:.1f} | {bin_['answers']:,} | " in text


def test_typed_queries_are_measured_by_kind_and_a_rerun_with_others_starts_anew(copied, tmp_path, capsys):
    path = tmp_path / "queries.csv"
    path.write_text(
        "kind,query,category_pattern,title_pattern\nplain,guitar,,guitar\nplain,lamp,,no such lamp\nrare,unheard,,unheard of\n"
    )
    assert evaluate.main(["--data", str(copied), "--queries", str(path)]) == 0
    report = reading.read_json(copied / "evaluation" / "report.json")
    questions = reading.read_csv(copied / "evaluation" / "questions.csv")
    typed = questions[questions["kind"] == "typed plain"]
    assert typed["words"].tolist() == ["guitar", "lamp"] and typed["ours"].iloc[1] == ""  # nothing is right
    assert report["typed_plain_p_at_10"]["value"] == pytest.approx(float(typed["ours"].iloc[0]), abs=1e-6)
    assert report["typed_plain_p_at_10_bm25"] is not None
    assert report["typed_rare_p_at_10"] is None and set(typed["product_id"]) == {""}
    assert "| typed plain: P@10 | " in (copied / "evaluation" / "report.md").read_text()
    assert json.loads(capsys.readouterr().out).get("unchanged") is None
    assert evaluate.main(["--data", str(copied), "--queries", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True


def test_queries_that_are_not_there_or_have_other_columns_are_one_sentence(copied, tmp_path, capsys):
    path = tmp_path / "queries.csv"
    assert fails(["--data", str(copied), "--queries", str(path)], capsys) == f"error: {path} is missing: check the path\n"
    path.write_text("kind,query,pattern\nplain,guitar,guitar\n")
    assert fails(["--data", str(copied), "--queries", str(path)], capsys) == (
        f"error: {path} has no column category_pattern: give a CSV with kind, query, category_pattern, title_pattern\n"
    )


class Oracle:
    """A recommender that knows every listing's category, and would name the query's own listing first if it were let."""

    def __init__(self, catalogue: evaluate.Catalogue, best_first: bool = True):
        self.listings, self.best_first, self.asked = catalogue.listings, best_first, []
        self.vectors, self.photos = catalogue.vectors, catalogue.photos
        rows = dict(zip(catalogue.listings["product_id"], range(len(catalogue.listings)), strict=True))
        self.catalogue = SimpleNamespace(product_row=lambda product_id: len(rows) - 1 - rows[product_id])  # in another order

    def query(self, vectors=None, text=None, probabilities=None):
        row = self.photos["listing_row"][int((self.vectors == vectors).all(axis=1).argmax())] if vectors is not None else None
        if text is not None:
            names = self.listings["name"] + "\n" + self.listings["description"]
            row = int((names == text).to_numpy().argmax())
        return SimpleNamespace(row=row, text=text, words=text, with_photo=probabilities is not None)

    def ranked(self, query, k, excluded, kinds):
        rows = len(self.listings) - 1 - np.asarray(excluded)
        self.asked.append((query, set(rows.tolist()), tuple(kinds)))
        asked = self.listings.iloc[query.row]
        grade = (self.listings["main_category"] == asked["main_category"]).to_numpy() * 1.0
        grade += (self.listings["category"] == asked["category"]).to_numpy()
        grade[query.row] = 3
        grade = grade if self.best_first else -grade
        grade[rows] = -np.inf
        return len(self.listings) - 1 - np.argsort(-grade, kind="stable")[:k]


def test_a_perfect_ranker_gets_1_and_a_perverse_one_0(catalogue):
    for best_first, expected in ((True, 1), (False, 0)):
        scores, _ = evaluate.rank(catalogue, Oracle(catalogue, best_first))
        assert set(scores) == set(evaluate.EVIDENCE)
        for values in scores.values():
            np.testing.assert_allclose(values[~np.isnan(values)], expected, atol=1e-9)


def test_the_cluster_of_a_query_is_never_among_what_may_be_found(catalogue):
    oracle = Oracle(catalogue)
    _, answers = evaluate.rank(catalogue, oracle)
    clusters = catalogue.listings["cluster"]
    for query, excluded, _ in oracle.asked:
        assert excluded == set(np.flatnonzero(clusters == clusters[query.row]))
    assert len(answers) == catalogue.photos["listing_row"].iloc[catalogue.queries].nunique()
    assert {kinds for *_, kinds in oracle.asked} == {KINDS, tuple(kind for kind in KINDS if kind != "category")}


def test_both_kinds_of_evidence_are_compared_on_the_same_listings(catalogue):
    scores = {name: np.array([0.5, np.nan, 0.5]) for name in evaluate.EVIDENCE}
    scores["text"] = np.array([0.2, 1.0, 0.4])
    figures = evaluate.rank_figures(scores, seed=0)
    assert figures["ndcg_at_10_text"]["value"] == pytest.approx(0.3)


@pytest.mark.parametrize(("gain", "low", "high"), [(0.2, 0, 0.001), (0, 0.3, 1), (-0.2, 0.99, 1)])
def test_p_tells_whether_both_kinds_of_evidence_beat_the_better_single_one(gain, low, high):
    generator = np.random.default_rng(0)
    single = generator.random(60) / 2
    noise = generator.normal(scale=0.1, size=60)
    noise -= noise.mean()
    scores = {"photo": single, "text": single - 0.2, "both": single + gain + noise, "both_without_category": single}
    p = evaluate.rank_figures(scores, seed=0)["ndcg_both_over_best_single_p"]
    assert low <= p["value"] <= high and p["low"] <= p["value"] <= p["high"]


def test_an_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=400)
    figure = metrics.mean(values, seed=0)
    margin = 1.96 * values.std() / 20
    assert figure["value"] == pytest.approx(values.mean(), abs=1e-6)
    assert (figure["low"], figure["high"]) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.15 * margin)


def test_a_figure_without_evidence_is_null_and_one_of_a_single_listing_is_a_point():
    assert metrics.mean(np.array([np.nan, np.nan]), seed=0) is None
    assert metrics.mean(np.array([np.nan, 0.25]), seed=0) == {"value": 0.25, "low": 0.25, "high": 0.25}
    same_price = pd.DataFrame({"price": [10.0] * 9, "price_low": 5.0, "price_median": 9.0, "price_high": 20.0})
    same_price["training_median_price"] = 10.0
    figures = evaluate.price_figures(same_price, seed=0)
    assert figures["price_log_r2"] is figures["price_error_over_median_baseline"] is None
    assert figures["price_interval_coverage"]["value"] == 1


def test_whitening_is_fitted_on_the_given_rows_alone():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 6)).astype(np.float32) @ np.diag([9, 5, 3, 1, 0.5, 0]).astype(np.float32)

    def whitened(dimension: int) -> np.ndarray:
        return embedding.embed(embedding.frozen_embedders(features[:50], dimension)["frozen backbone, whitened"], features)

    white = whitened(256)
    assert white.shape == (80, 5)  # the rank
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-5)
    features[50:] = 1000
    np.testing.assert_array_equal(whitened(256)[:50], white[:50])
    assert whitened(3).shape == (80, 3)


def test_test_listings_without_photos_give_nulls_and_a_report_all_the_same(copied, catalogue, monkeypatch, capsys):
    without = dataclasses.replace(catalogue, queries=catalogue.queries[:0])
    monkeypatch.setattr(evaluate, "read", lambda *_: without)
    shutil.rmtree(copied / "evaluation")
    assert evaluate.main(["--data", str(copied)]) == 0
    report = reading.read_json(copied / "evaluation" / "report.json")
    assert {name for name in KEYS if report[name] is None} == OF_PHOTOS
    assert "| accuracy | - | " in (copied / "evaluation" / "report.md").read_text()
    for name in ("gallery.png", "confusion.png", "hardest.png"):
        Image.open(copied / "evaluation" / name).verify()
    assert json.loads(capsys.readouterr().out)["photo_accuracy"] is None


def test_a_rerun_does_nothing_and_a_run_from_nothing_writes_the_same_bytes(copied, capsys):
    before = stages.digests(copied / "evaluation", *OUTPUTS)
    times = [(copied / "evaluation" / name).stat().st_mtime_ns for name in OUTPUTS]
    assert evaluate.main(["--data", str(copied)]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    assert [(copied / "evaluation" / name).stat().st_mtime_ns for name in OUTPUTS] == times
    shutil.rmtree(copied / "evaluation")
    assert evaluate.main(["--data", str(copied)]) == 0
    assert stages.digests(copied / "evaluation", *OUTPUTS) == before


def test_fewer_queries_can_be_asked(copied, table, capsys):
    assert evaluate.main(["--data", str(copied), "--max-queries", "3"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["measured"], counts["test_listings"]) == (3, len(table))
    assert set(reading.read_csv(copied / "evaluation" / "listings.csv")["product_id"]) < set(table["product_id"])
    assert (copied / "evaluation" / "report.md").read_text().startswith("# Quality on the test split\n\n3 of the ")


def test_the_gallery_shows_queries_and_answers(measured, catalogue):
    with Image.open(measured / "evaluation" / "gallery.png") as gallery:
        assert gallery.format == "PNG" and gallery.width > (evaluate.GALLERY_ANSWERS + 1) * evaluate.GALLERY_TILE_PX
    right = evaluate.Answered(0, np.arange(5), np.array([2, 1, 0, 0, 0]))
    wrong = evaluate.Answered(1, np.arange(3), np.array([0, 0, 0]))
    sheets = [
        evaluate.draw_gallery(catalogue, answers, measured / "images", 0)
        for answers in ([right] * 20 + [wrong] * 20, [right] * 20, [wrong] * 2, [])
    ]
    heights = [Image.open(io.BytesIO(sheet)).height for sheet in sheets]
    assert heights[0] == heights[1] > heights[2] >= heights[3]
    assert sheets[0] != sheets[1]


def test_earlier_stages_that_are_missing_are_named(copied, tmp_path, capsys):
    expected = f"error: {tmp_path / 'none' / 'tabular'} is not finished: run python clean_tabular_data.py first\n"
    assert fails(["--data", str(tmp_path / "none")], capsys) == expected
    shutil.rmtree(copied / "index")
    expected = f"error: {copied / 'index'} is not finished: run python build_index.py first\n"
    assert fails(["--data", str(copied)], capsys) == expected


def test_an_index_of_other_vectors_is_stale(copied, capsys):
    path = copied / "embeddings" / "vectors.npy"
    atomic.write_array(path, np.load(path)[:, ::-1])
    stamp(copied, "embeddings")
    expected = f"error: {copied / 'index'} was made from another embeddings/vectors.npy: run python build_index.py again\n"
    assert fails(["--data", str(copied)], capsys) == expected


def test_features_of_other_photos_are_refused(copied, capsys):
    path = copied / "features" / "image_ids.json"
    atomic.write_json(path, reading.read_json(path)[::-1])
    stamp(copied, "features")
    plain = copied / "features" / "plain.npy"
    expected = f"error: {plain} holds other photos than the dataset: run python train.py again\n"
    assert fails(["--data", str(copied)], capsys) == expected


def test_an_empty_test_split_is_one_sentence(copied):
    path = copied / "dataset" / "listings.csv"
    path.write_text(path.read_text().replace(",test", ",train"))
    with pytest.raises(StageError) as error:
        evaluate.read(copied, max_queries=10, seed=0)
    assert str(error.value) == (
        f"the test split of {copied / 'dataset'} has no listing: give more listings, or dataset.py a --split-column"
    )


def test_columns_of_the_users_own_do_not_stand_for_the_split(copied, catalogue):
    path = copied / "tabular" / "products.csv"
    atomic.write_csv(path, reading.read_csv(path).assign(split="test", cluster="one"))
    again = evaluate.read(copied, max_queries=1000, seed=0)
    pd.testing.assert_frame_equal(again.listings, catalogue.listings, check_like=True)
    assert again.measured.tolist() == catalogue.measured.tolist()


def test_vectors_of_ones_own_are_refused(copied, tmp_path, capsys):
    ids = reading.read_json(copied / "embeddings" / "image_ids.json")
    vectors = np.random.default_rng(0).normal(size=(len(ids), 4))
    (tmp_path / "own.json").write_text(json.dumps(dict(zip(ids, vectors.tolist(), strict=True))))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    expected = f"error: {copied / 'index'} holds vectors of your own: run python build_index.py without --embeddings\n"
    assert fails(["--data", str(copied)], capsys) == expected


def test_a_leaky_split_is_by_photo_and_of_the_same_size(catalogue, monkeypatch):
    seen = []

    def head_of_photos(catalogue, train, test):
        seen.append((set(train), set(test)))
        return np.ones((len(test), 2))

    monkeypatch.setattr(evaluate, "head_of_photos", head_of_photos)
    evaluate.compare_splits(catalogue, seed=0)
    (our_train, our_test), (leaky_train, leaky_test) = seen
    rows = catalogue.photos["listing_row"]
    assert not set(rows[list(our_train)]) & set(rows[list(our_test)])
    assert set(rows[list(leaky_train)]) & set(rows[list(leaky_test)])
    assert not leaky_train & leaky_test
    assert (len(our_train), len(our_test)) == (len(leaky_train), len(leaky_test))


@pytest.mark.parametrize("flag", ["--max-queries", "--seed"])
def test_values_that_make_no_sense_are_usage_errors(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([flag, "-1"])
    assert f"argument {flag}: '-1' is not a whole number" in capsys.readouterr().err
