import numpy as np
import pytest

from marketplace import table_models
from marketplace.errors import StageError

KINDS = {"guitar": 100.0, "kettle": 10.0, "bicycle": 300.0}
WORDS = ["red", "blue", "old", "new", "small", "large", "lovely", "used", "clean", "boxed"]


def make_listings(rows: int, seed: int):
    generator = np.random.default_rng(seed)
    labels = generator.integers(len(KINDS), size=rows)
    names = list(KINDS)
    texts = [f"{' '.join(generator.choice(WORDS, 4))} {names[label]}" for label in labels]
    prices = np.array([KINDS[names[label]] for label in labels]) * np.exp(generator.normal(0, 0.3, rows))
    return texts, labels, prices, np.ones(rows, bool)


@pytest.fixture(scope="module")
def models():
    fitted = table_models.fit(*make_listings(300, seed=0), n_classes=4, seed=0)
    table_models.calibrate(fitted, *make_listings(400, seed=1))
    return fitted


def test_categories_of_new_listings_are_predicted_with_probabilities(models):
    texts, labels, _, _ = make_listings(200, seed=2)
    probabilities = models.category_probabilities(texts)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.98
    assert (probabilities[:, 3] == 0).all()  # a class that training never saw


def test_prices_of_new_listings_are_predicted_within_the_range(models):
    texts, labels, prices, _ = make_listings(300, seed=3)
    ranges = [models.price_range(text, np.eye(4)[label]) for text, label in zip(texts, labels, strict=True)]
    inside = [low["low"] <= price <= low["high"] for low, price in zip(ranges, prices, strict=True)]
    assert 0.7 < np.mean(inside) < 0.9
    assert all(each["low"] <= each["median"] <= each["high"] for each in ranges)
    medians = np.array([each["median"] for each in ranges])
    assert np.median(np.abs(medians - prices)) < 0.5 * np.median(np.abs(np.median(prices) - prices))


def test_text_vectors_have_unit_length_and_strange_words_none(models):
    vectors = models.encode(["old guitar", "", "♞♞"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0], atol=1e-6)
    assert vectors.dtype == np.float32


def test_saved_models_give_the_same_answers_and_equal_models_equal_bytes(models, tmp_path):
    texts, _, _, _ = make_listings(30, seed=4)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        models.save(tmp_path / name)
        models = table_models.TableModels.load(tmp_path / name)
    again = table_models.TableModels.load(tmp_path / "a")
    np.testing.assert_allclose(again.encode(texts), models.encode(texts), atol=1e-6)
    np.testing.assert_allclose(again.category_probabilities(texts), models.category_probabilities(texts), atol=1e-6)
    np.testing.assert_allclose(
        again.log_price(texts, np.eye(4)[:1].repeat(30, 0)), models.log_price(texts, np.eye(4)[:1].repeat(30, 0))
    )
    for file_name in (table_models.DESCRIPTION, table_models.WEIGHTS):
        assert (tmp_path / "a" / file_name).read_bytes() == (tmp_path / "b" / file_name).read_bytes()


def test_rows_that_are_not_for_training_have_no_influence():
    texts, labels, prices, plausible = make_listings(100, seed=5)
    wild = prices.copy()
    plausible[:10] = False
    wild[:10] = 1e9
    first, second = (table_models.fit(texts, labels, p, plausible, n_classes=3, seed=0) for p in (prices, wild))
    np.testing.assert_array_equal(first.price.coef_, second.price.coef_)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(20, int)}, "the training listings have one category only: give listings of at least two"),
        ({"texts": ["..."] * 20}, "the training listings hold no words: check product_name and product_description$"),
        ({"plausible": np.zeros(20, bool)}, "no training listing has a plausible price: check the price column of Products.csv$"),
    ],
)
def test_data_that_cannot_be_learned_from_is_one_sentence(change, message):
    arguments = dict(zip(("texts", "labels", "prices", "plausible"), make_listings(20, seed=6), strict=True)) | change
    with pytest.raises(StageError, match=message):
        table_models.fit(**arguments, n_classes=3, seed=0)


def test_damaged_or_missing_files_are_one_sentence(models, tmp_path):
    models.save(tmp_path)
    (tmp_path / table_models.WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(StageError, match="table_models.safetensors is missing or damaged: run python train.py again$"):
        table_models.TableModels.load(tmp_path)
