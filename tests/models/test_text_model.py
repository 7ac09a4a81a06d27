import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from marketplace.files.stages import StageError
from marketplace.models import text_model
from marketplace.models.text_model import TableModels

PATHS = ["Music / Guitars", "Kitchen / Kettles", "Sport / Bicycles", "Sport / Bicycles / Parts"]
NOUNS = ["guitar", "kettle", "bicycle", "bicycle chain"]
LABELS = [0, 1, 2, 2]
WORDS = ["red", "blue", "old", "new", "small", "large", "lovely", "used", "clean", "boxed"]
N_CLASSES = 4  # the last of which no listing has


def make_listings(rows: int, seed: int, wrong: float = 0.0):
    """Texts, labels and paths; a share of the labels is random, whatever the text says."""
    generator = np.random.default_rng(seed)
    kinds = generator.integers(len(PATHS), size=rows)
    texts = [f"{NOUNS[kind]} {' '.join(generator.choice(WORDS, 2))}\n{' '.join(generator.choice(WORDS, 4))}" for kind in kinds]
    labels = np.array(LABELS)[kinds]
    random = generator.random(rows) < wrong
    return texts, np.where(random, generator.integers(3, size=rows), labels), [PATHS[kind] for kind in kinds]


def fit(rows: int = 300, seed: int = 0) -> TableModels:
    return text_model.fit(*make_listings(rows, seed), n_classes=N_CLASSES, seed=0)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-6, 1)).mean())


@pytest.fixture(scope="module")
def models():
    fitted = fit()
    fitted.calibrate(*make_listings(400, seed=1)[:2])
    return fitted


def test_categories_of_new_listings_are_predicted_with_probabilities(models):
    texts, labels, _ = make_listings(200, seed=2)
    probabilities = models.category_probabilities(texts)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() > 0.98
    assert (probabilities[:, 3] == 0).all()  # a class that training never saw


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30) | st.lists(st.sampled_from([*NOUNS, *WORDS, "Égal", "\n"])).map(" ".join), min_size=1))
def test_features_are_those_of_scikit_learn_and_read_once_are_the_same(models, texts):
    parts = {name: [text.partition("\n")[0] for text in texts] if "title" in name else texts for name in models.vectorisers}
    expected = np.hstack([vectoriser.transform(parts[name]).toarray() for name, vectoriser in models.vectorisers.items()])
    np.testing.assert_allclose(models.features(texts).toarray(), expected, atol=1e-6)
    vectors, probabilities = models.read(texts)
    np.testing.assert_array_equal(vectors, models.encode(texts))
    np.testing.assert_array_equal(probabilities, models.category_probabilities(texts))


def test_arrays_are_mapped_as_the_file_holds_them(models, tmp_path):
    models.save(tmp_path)
    mapped = text_model.read_arrays(tmp_path / text_model.WEIGHTS)
    expected = safetensors.numpy.load_file(tmp_path / text_model.WEIGHTS)
    assert mapped.keys() == expected.keys() and not any(array.flags.owndata for array in mapped.values())
    for name, array in expected.items():
        np.testing.assert_array_equal(mapped[name], array, strict=True)


def test_calibrated_probabilities_are_as_often_right_as_they_say():
    models = fit()
    models.calibrate(*make_listings(1000, seed=4, wrong=0.4)[:2])
    texts, labels, _ = make_listings(1000, seed=5, wrong=0.4)
    probabilities = models.category_probabilities(texts)
    # Four of ten labels are drawn from three: 0.6 + 0.4 / 3 are as the text says.
    assert probabilities.max(1).mean() == pytest.approx(0.6 + 0.4 / 3, abs=0.04)
    assert fit().category_probabilities(texts).max(1).mean() > 0.9  # before


def test_two_categories_get_probabilities_between_sure_and_undecided():
    texts, labels, paths = make_listings(200, seed=6)
    two = [row for row in range(200) if labels[row] < 2]
    models = text_model.fit([texts[row] for row in two], labels[two], [paths[row] for row in two], n_classes=2, seed=0)
    probabilities = models.category_probabilities(["guitar\nold", "kettle\nold", "lovely\nold"])
    assert probabilities[0, 0] > 0.9 and probabilities[1, 1] > 0.9 and abs(probabilities[2, 0] - 0.5) < 0.45
    assert models.path_probabilities(models.encode(["guitar\nold", "kettle\nold"])).argmax(1).tolist() == [1, 0]


def test_title_counts_more_than_the_same_words_in_the_description(models):
    guitar = models.category_probabilities(["guitar\nkettle", "kettle\nguitar"])[:, 0]
    assert guitar[0] > 0.5 > guitar[1]


def test_paths_are_the_training_listings_and_their_probabilities_those_of_scikit_learn(models):
    texts, _, paths = make_listings(300, seed=0)
    assert models.paths == sorted(set(paths))
    oracle = LogisticRegression(C=20, max_iter=300).fit(models.encode(texts), paths)
    vectors = models.encode(make_listings(50, seed=7)[0])
    probabilities = models.path_probabilities(vectors)
    np.testing.assert_allclose(probabilities, oracle.predict_proba(vectors), atol=1e-3)
    assert probabilities.dtype == np.float32


def test_path_model_of_many_listings_is_fitted_on_a_sample_that_has_every_path(monkeypatch):
    monkeypatch.setattr(text_model, "MAX_PATH_LISTINGS", 10)
    texts, labels, paths = make_listings(100, seed=8)
    paths[50] = "Sport / Rare"
    assert text_model.fit(texts, labels, paths, n_classes=3, seed=0).paths == sorted(set(paths))


def test_text_vectors_have_unit_length_and_strange_words_none(models):
    vectors = models.encode(["old guitar", "", "♞♞"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0], atol=1e-6)
    assert vectors.dtype == np.float32
    for text in ("", "♞♞"):  # what is left is how common the classes are
        np.testing.assert_allclose(models.category_probabilities([text]).sum(), 1, atol=1e-5)


def test_small_validation_keeps_the_default_weights():
    models = fit(40)
    texts, labels, _ = make_listings(text_model.MIN_VALIDATION - 1, seed=9)
    models.calibrate(texts, labels)
    models.fit_fusion(np.full((len(texts), N_CLASSES), 0.25), models.category_probabilities(texts), labels)
    assert models.category_weights.tolist() == list(text_model.CATEGORY_WEIGHTS)
    assert (models.photo_weight, models.fusion_weights.tolist()) == (1.0, [0.5, 0.5])


def test_validation_listings_of_a_class_that_training_never_saw_change_nothing(models):
    texts, labels, _ = make_listings(100, seed=10)
    first, second = fit(), fit()
    first.calibrate(texts, labels)
    second.calibrate([*texts, "strange\nthing"], np.append(labels, 3))
    np.testing.assert_array_equal(first.category_weights, second.category_weights)


# Fusion.


def make_votes(rows: int, accuracies: list[float], sharpness: float, seed: int):
    """Labels, and for each accuracy (N, C) probabilities whose largest is right that often."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(N_CLASSES, size=rows)
    votes = []
    for accuracy in accuracies:
        guess = np.where(generator.random(rows) < accuracy, labels, generator.integers(N_CLASSES, size=rows))
        scores = sharpness * np.eye(N_CLASSES)[guess] + generator.normal(0, 0.3, (rows, N_CLASSES))
        votes.append((np.exp(scores) / np.exp(scores).sum(1, keepdims=True)).astype(np.float32))
    return labels, *votes


def test_fusion_takes_either_kind_of_evidence_or_both_or_neither():
    models = fit(40)
    _, photo, text = make_votes(5, [0.5, 0.8], 2, seed=0)
    np.testing.assert_array_equal(models.fuse(None, text), text)
    np.testing.assert_allclose(models.fuse(photo, None), photo, atol=1e-6)
    geometric = np.sqrt(photo * text)
    np.testing.assert_allclose(models.fuse(photo, text), geometric / geometric.sum(1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="^neither a photo nor words$"):
        models.fuse(None, None)


def test_listing_without_a_photo_is_fused_to_its_text():
    models = fit(40)
    _, photo, text = make_votes(5, [0.5, 0.8], 2, seed=0)
    photo[2] = np.nan
    fused = models.fuse(photo, text)
    np.testing.assert_array_equal(fused[2], text[2])
    np.testing.assert_array_equal(fused[[0, 1, 3, 4]], models.fuse(photo[[0, 1, 3, 4]], text[[0, 1, 3, 4]]))


@settings(max_examples=25, deadline=None)
@given(accuracies=st.lists(st.floats(0, 1), min_size=2, max_size=2), sharpness=st.floats(0.1, 8), seed=st.integers(0, 99))
def test_fused_probabilities_are_never_less_likely_than_the_better_kind_alone(empty_models, accuracies, sharpness, seed):
    labels, photo, text = make_votes(200, accuracies, sharpness, seed)
    empty_models.fit_fusion(photo, text, labels)
    alone = min(
        negative_log_likelihood(empty_models.fuse(photo, None), labels),
        negative_log_likelihood(photo, labels),
        negative_log_likelihood(text, labels),
    )
    # The prior is worth one listing of the 200, and asks less than 1 for weights near 1.
    assert negative_log_likelihood(empty_models.fuse(photo, text), labels) <= alone + 1 / 200
    assert (empty_models.fusion_weights >= 0).all()


@pytest.fixture(scope="module")
def empty_models():
    return fit(40)


def test_fusion_of_new_listings_is_likelier_than_either_kind_and_hears_the_better_one_more():
    models = fit(40)
    models.fit_fusion(*(make_votes(1000, [0.6, 0.6], 2, seed=1)[part] for part in (1, 2, 0)))
    labels, photo, text = make_votes(1000, [0.6, 0.6], 2, seed=2)
    fused, alone = (negative_log_likelihood(kind, labels) for kind in (models.fuse(photo, text), models.fuse(photo, None)))
    assert fused < 0.85 * min(alone, negative_log_likelihood(text, labels))
    labels, photo, text = make_votes(1000, [0.3, 0.9], 2, seed=3)
    models.fit_fusion(photo, text, labels)
    assert models.fusion_weights[1] > 2 * models.fusion_weights[0]


def test_overconfident_photo_alone_is_cooled():
    models = fit(40)
    labels, photo, text = make_votes(1000, [0.6, 0.6], 8, seed=4)
    models.fit_fusion(photo, text, labels)
    cooled = models.fuse(photo, None)
    assert photo.max(1).mean() > 0.95
    assert cooled.max(1).mean() == pytest.approx((photo.argmax(1) == labels).mean(), abs=0.05)


def test_weight_of_few_photos_is_the_likeliest_on_a_grid_with_one_listing_for_the_default():
    models = fit(40)
    labels, photo, text = make_votes(25, [1.0, 1.0], 1, seed=6)
    models.fit_fusion(photo, text, labels)
    grid = np.linspace(0, 20, 20_001)
    logs = np.log(photo[None] ** grid[:, None, None] / (photo[None] ** grid[:, None, None]).sum(2, keepdims=True))
    losses = -logs[:, np.arange(25), labels].mean(1) + (grid - 1) ** 2 / (2 * 25)
    assert models.photo_weight == pytest.approx(grid[losses.argmin()], abs=0.01)


# Files.


def test_saved_models_give_the_same_answers_and_equal_models_equal_bytes(models, tmp_path):
    models.fit_fusion(*(make_votes(100, [0.6, 0.6], 2, seed=5)[part] for part in (1, 2, 0)))
    texts, _, _ = make_listings(30, seed=11)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    models.save(tmp_path / "a")
    again = TableModels.load(tmp_path / "a")
    again.save(tmp_path / "b")
    np.testing.assert_array_equal(again.encode(texts), models.encode(texts))
    np.testing.assert_array_equal(again.category_probabilities(texts), models.category_probabilities(texts))
    vectors = models.encode(texts)
    np.testing.assert_array_equal(again.path_probabilities(vectors), models.path_probabilities(vectors))
    _, photo, text = make_votes(5, [0.5, 0.8], 2, seed=0)
    np.testing.assert_array_equal(again.fuse(photo, text), models.fuse(photo, text))
    np.testing.assert_array_equal(again.fuse(photo, None), models.fuse(photo, None))
    assert again.paths == models.paths
    for name in text_model.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Meanings:
    """An encoder that knows three words in any language."""

    def encode(self, texts, max_tokens):
        kinds = np.array([[any(word in text for word in said) for said in SAID] for text in texts], np.float32)
        return kinds / np.maximum(np.linalg.norm(kinds, axis=1, keepdims=True), 1)


SAID = (("guitar", "guitare"), ("kettle", "bouilloire"), ("bicycle", "bicyclette"))


def test_words_that_training_never_saw_are_told_by_their_meaning(models):
    texts, labels, paths = make_listings(300, seed=0)
    told = text_model.fit(texts, labels, paths, N_CLASSES, 0, Meanings())
    french = ["guitare", "bouilloire", "bicyclette"]
    assert told.category_probabilities(french).argmax(1).tolist() == [0, 1, 2]
    assert models.category_probabilities(french).argmax(1).tolist() != [0, 1, 2]
    given = Meanings().encode(["bouilloire"] * 3, 0)
    assert told.category_probabilities(french, given).argmax(1).tolist() == [1, 1, 1]
    assert told.read(french, given)[1].argmax(1).tolist() == [1, 1, 1]


def test_a_refit_learns_from_more_listings_and_keeps_the_first_fit(tmp_path):
    texts, labels, paths = make_listings(300, seed=0)
    few = np.flatnonzero(labels != 1)  # no kettle
    chosen = [[column[row] for row in few] for column in (texts, paths)]
    first = text_model.fit(chosen[0], labels[few], chosen[1], N_CLASSES, 0)
    refitted = first.refit(texts, labels, paths, seed=0)
    asked = ["kettle\nred", "guitar\nred"]
    assert refitted.category_probabilities(asked).argmax(1).tolist() == [1, 0]
    assert refitted.paths == sorted(set(paths)) and len(first.paths) == len(refitted.paths) - 1
    np.testing.assert_array_equal(refitted.encode(texts), first.encode(texts))
    refitted.save(tmp_path)
    before = TableModels.load(tmp_path).before_refit()
    np.testing.assert_array_equal(before.category_probabilities(asked), first.category_probabilities(asked))
    vectors = first.encode(asked)
    probabilities = before.path_probabilities(vectors)
    own = [before.paths.index(path) for path in first.paths]
    np.testing.assert_allclose(probabilities[:, own], first.path_probabilities(vectors), atol=1e-6)
    assert probabilities.shape[1] == len(refitted.paths) and probabilities[:, refitted.paths.index(PATHS[1])].max() == 0


def test_models_with_meanings_are_saved_and_take_their_encoder_with_them(tmp_path, monkeypatch):
    texts, labels, paths = make_listings(100, seed=0)
    told = text_model.fit(texts, labels, paths, N_CLASSES, 0, Meanings()).refit(texts, labels, paths, seed=0)
    told.save(tmp_path)
    given = TableModels.load(tmp_path, Meanings())
    monkeypatch.setattr(text_model.TextEncoder, "load", lambda folder: Meanings())
    opened = TableModels.load(tmp_path)
    for models in (given, opened):
        np.testing.assert_array_equal(models.category_probabilities(texts), told.category_probabilities(texts))
        before, expected = (each.before_refit().category_probabilities(texts) for each in (models, told))
        np.testing.assert_array_equal(before, expected)


def test_two_fits_of_the_same_listings_write_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        fit(60).save(tmp_path / folder)
    for name in text_model.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_listings_without_words_are_one_sentence():
    _, labels, paths = make_listings(20, seed=12)
    with pytest.raises(StageError, match="^the training listings hold no words: check the columns of their names and desc"):
        text_model.fit(["..."] * 20, labels, paths, n_classes=3, seed=0)


@pytest.mark.parametrize("one_path", [True, False])
def test_one_category_alone_is_certain_whatever_a_text_says(one_path, tmp_path):
    texts, _, paths = make_listings(30, seed=12)
    paths = ["Other"] * 30 if one_path else paths
    labels = np.zeros(30, int)
    models = text_model.fit(texts, labels, paths, n_classes=1, seed=0)
    models.calibrate(texts, labels)
    models = models.refit(texts, labels, paths, seed=0)
    models.save(tmp_path)
    for each in (models, TableModels.load(tmp_path)):
        assert each.category_probabilities(["brass lamp", ""]).tolist() == [[1], [1]]
        by_path = each.path_probabilities(each.encode(texts))
        assert each.paths == sorted(set(paths)) and by_path.shape == (30, len(set(paths)))
        np.testing.assert_allclose(by_path.sum(axis=1), 1, atol=1e-6)


def test_damaged_or_missing_files_are_one_sentence(models, tmp_path):
    models.save(tmp_path)
    for damage in (lambda path: path.write_bytes(b"damaged"), lambda path: path.unlink()):
        damage(tmp_path / text_model.WEIGHTS)
        with pytest.raises(StageError, match="table_models.safetensors is missing or damaged: run python train.py again$"):
            TableModels.load(tmp_path)
