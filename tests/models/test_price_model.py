import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.files.stages import StageError
from marketplace.models import price_model, sample_sizes, text_model
from marketplace.models.price_model import Evidence, PriceModel

PATHS = ["Music / Guitars", "Kitchen / Kettles", "Sport / Bicycles", "Sport / Bicycles / Parts"]
LOG_PRICES = np.array([2.0, 1.0, 2.5, 1.5])  # log10 pounds
NOUNS = ["guitar", "kettle", "bicycle", "chain"]
COUNTIES = ["Kent", "Devon", ""]
WORDS = ["red", "blue", "old", "small", "large", "lovely", "used", "clean"]
DIMENSION = 8


def make_listings(rows: int, seed: int, kinds: int = 4, noise: float = 0.2) -> dict:
    """Prices that depend on the path, on "new" in the text, and on the photo; a tenth of the listings has no photo."""
    generator = np.random.default_rng(seed)
    kind = generator.integers(kinds, size=rows)
    new = generator.random(rows) < 0.5
    vectors = generator.normal(0, 1, (rows, DIMENSION)).astype(np.float32)
    vectors[:, 0] = LOG_PRICES[kind] - 1.75 + generator.normal(0, 0.3, rows)
    log_prices = LOG_PRICES[kind] + 0.3 * new + generator.normal(0, noise, rows)
    vectors[generator.random(rows) < 0.1] = np.nan
    state = np.where(new, "new", "worn")
    return {
        "texts": [f"{NOUNS[k]} {s}\n{' '.join(generator.choice(WORDS, 3))}" for k, s in zip(kind, state, strict=True)],
        "paths": [PATHS[k] for k in kind],
        "counties": generator.choice(COUNTIES, rows).tolist(),
        "vectors": vectors,
        "prices": 10**log_prices,
        "plausible": np.ones(rows, bool),
    }


def tables_of(data: dict) -> text_model.TableModels:
    labels = np.array([PATHS.index(path) for path in data["paths"]])
    return text_model.fit(data["texts"], labels, data["paths"], n_classes=len(PATHS), seed=0)


def fit(data: dict, tables=None, **changes) -> PriceModel:
    data = {"clusters": np.arange(len(data["texts"]))} | data | changes
    others = {name: data[name] for name in ("prices", "plausible", "clusters")}
    return price_model.fit(tables or tables_of(data), Evidence(**evidence(data)), **others, seed=0)


def calibrate(model: PriceModel, data: dict) -> None:
    model.calibrate(Evidence(**evidence(data)), data["prices"], data["plausible"])


def evidence(data: dict, **changes) -> dict:
    return {name: data[name] for name in ("texts", "paths", "counties", "vectors")} | changes


def without_words(data: dict) -> dict:
    return evidence(data, texts=[""] * len(data["texts"]), paths=None, counties=None)


@pytest.fixture(scope="module")
def model():
    fitted = fit(make_listings(500, seed=0))
    calibrate(fitted, make_listings(500, seed=1))
    return fitted


@pytest.fixture
def two_folders(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.mark.parametrize(
    "seen",
    [
        evidence,
        lambda data: evidence(data, paths=None, counties=None),
        lambda data: evidence(data, vectors=None),
        without_words,
    ],
    ids=["everything", "path and county hidden", "photo hidden", "photo alone"],
)
def test_four_of_five_prices_of_new_listings_lie_in_the_range(model, seen):
    data = make_listings(1000, seed=2)
    low, _, high = model.quantiles(Evidence(**seen(data))).T
    inside = (low <= np.log10(data["prices"])) & (np.log10(data["prices"]) <= high)
    assert 0.73 < inside.mean() < 0.87


def test_median_is_near_the_price_and_nearer_the_more_is_known(model):
    data = make_listings(1000, seed=3)
    truth = np.log10(data["prices"])
    everything, photo = (
        np.median(np.abs(model.quantiles(Evidence(**seen))[:, 1] - truth)) for seen in (evidence(data), without_words(data))
    )
    nothing = np.median(np.abs(np.median(truth) - truth))
    # The noise alone, of standard deviation 0.2, gives 0.135.
    assert everything < 0.16 < photo < 0.8 * nothing


def test_each_kind_of_evidence_moves_the_median():
    data = make_listings(500, seed=0)
    for row in range(0, 500, 5):  # texts that do not say what the thing is: the path must
        data["texts"][row] = f"thing {data['texts'][row].partition(' ')[2]}"
    model = fit(data)

    def median(text="", path=None, vector=None):
        return model.price_range(text, path, None, vector)["median"]

    dear, cheap = np.zeros(DIMENSION, np.float32), np.zeros(DIMENSION, np.float32)
    dear[0], cheap[0] = 0.75, -0.75
    assert median("bicycle new\nred") > 2 * median("kettle new\nred")
    assert median("thing new\nred", "Sport / Bicycles") > 2 * median("thing new\nred", "Kitchen / Kettles")
    assert median(vector=dear) > 2 * median(vector=cheap)


def test_county_moves_the_median_where_prices_differ_by_it():
    data = make_listings(200, seed=22)
    kent = np.array([county == "Kent" for county in data["counties"]])
    model = fit(data | {"prices": data["prices"] * np.where(kent, 10, 1)})
    medians = [model.price_range("guitar new\nred", PATHS[0], county)["median"] for county in ("Kent", "Devon")]
    assert medians[0] > 3 * medians[1]


def test_mean_price_of_a_path_is_drawn_towards_its_parents():
    data = make_listings(40, seed=23)
    data["paths"][:3], data["prices"][:3] = ["Sport / Skis", "Sport / Skis", "Sport"], np.array([1000.0, 100.0, 10.0])
    data["paths"][3:], data["prices"][3:] = ["Music"] * 37, np.full(37, 10.0)
    means = fit(data, tables_of(make_listings(40, seed=23))).first.path_means
    all_of_them = (3 + 2 + 1 + 37) / 40
    sport = (3 + 2 + 1 + 5 * all_of_them) / (3 + 5)
    skis = (3 + 2 + 5 * sport) / (2 + 5)
    assert [means[name] for name in ("", "Sport", "Sport / Skis")] == pytest.approx([all_of_them, sport, skis])


def test_prices_of_like_texts_are_weighed_by_the_fourth_power_of_their_cosines(monkeypatch):
    monkeypatch.setattr(price_model, "BLOCK_ROWS", 7)
    data = make_listings(60, seed=24)
    tables = tables_of(data)
    first = fit(data, tables).first
    order = [data["prices"].tolist().index(pytest.approx(10**price, rel=1e-5)) for price in first.neighbour_prices]
    vectors = tables.encode(data["texts"])
    np.testing.assert_allclose(first.neighbours, vectors[order], atol=1e-6)
    found, compared = first._like_prices(vectors, first.neighbours), 0
    for vector, row in zip(vectors, found, strict=True):
        cosines = vectors @ vector
        for k, (mean, spread) in zip((5, 20), row.reshape(2, 2), strict=True):
            nearest = np.argsort(-cosines)[:k]
            if np.isclose(*np.sort(cosines)[[-k, -k - 1]]):  # which of equal ones is taken is no matter here
                continue
            compared += 1
            prices, weights = np.log10(data["prices"])[nearest], np.maximum(cosines[nearest], 1e-3) ** 4
            assert mean == pytest.approx(np.average(prices, weights=weights), abs=1e-4)
            assert spread == pytest.approx(np.sqrt(np.cov(prices, aweights=weights, ddof=0)), abs=1e-4)
    assert compared > 60


def test_text_without_a_known_word_has_no_like_texts(model):
    texts = ["guitar new", "\u4e2d\u6587"]
    features = model.tables.features(texts)
    evidence_of = Evidence(texts, meanings=np.empty((2, 0), np.float32))
    columns = model.first.columns(features, model.tables.vectors_of(features), evidence_of)
    by_words = slice(price_model.LIKE.start, price_model.LIKE.start + 4)
    assert np.isfinite(columns[0, by_words]).all() and np.isnan(columns[1, by_words]).all()


def test_the_signs_of_the_models_own_currency_are_read():
    text = "Bed\npaid 1.200 €, or £40"
    assert price_model._numbers(text, "EUR")[2] == price_model._numbers(text, "GBP")[2] == 1
    assert 10 ** price_model._named_prices(text, "EUR")[0] == pytest.approx(1200)
    assert 10 ** price_model._named_prices(text, "GBP")[0] == pytest.approx(40)


def test_amounts_in_pounds_and_cues_are_read_as_a_seller_writes_them():
    largest, smallest, count = price_model._named_prices("RRP £1,200\ncost me £ 300, yours for £45.50 each", "GBP")
    assert (10**largest, 10**smallest, count) == (pytest.approx(1200), pytest.approx(45), 3)
    assert price_model._named_prices("£0", "GBP")[:2] == [0, 0]
    assert np.isnan(price_model._named_prices("forty pounds", "GBP")[:2]).all()
    said = [
        cue
        for cue, is_said in zip(price_model.CUES, price_model._cues("Brand-new, O.N.O? a phono set of 2"), strict=True)
        if is_said
    ]
    assert said == ["new", "brand new", "set of"]


class Meanings:
    """An encoder of which a listing's second number is how dear the words "posh" and "plain" make it."""

    def __init__(self):
        self.asked = []

    def encode(self, texts, max_tokens):
        self.asked += texts
        dear = np.array([[1.0, "posh" in text, "plain" in text] for text in texts], np.float32)
        return dear * np.array([[bool(text.strip())] for text in texts]) / np.linalg.norm(dear, axis=1, keepdims=True)


def test_meaning_moves_the_median_where_words_tell_nothing(two_folders):
    data = make_listings(400, seed=30)
    posh = np.random.default_rng(0).random(400) < 0.5
    meanings = Meanings().encode(["posh" if each else "plain" for each in posh], 0)
    labels = np.array([PATHS.index(path) for path in data["paths"]])
    tables = text_model.fit(data["texts"], labels, data["paths"], len(PATHS), 0, Meanings(), meanings)
    given = Evidence(data["texts"], data["paths"], meanings=meanings)
    prices = data["prices"] * np.where(posh, 10, 1)
    model = price_model.fit(tables, given, prices, data["plausible"], np.arange(400), seed=0)
    medians = [
        model.price_range(data["texts"][0], data["paths"][0], meaning=meanings[posh == each][0])["median"] for each in (1, 0)
    ]
    assert medians[0] > 4 * medians[1]
    tables.encoder.asked.clear()
    assert model.price_range("posh guitar")["median"] > 2 * model.price_range("plain guitar")["median"]
    assert tables.encoder.asked == ["posh guitar", "plain guitar"]  # where the meaning is not given
    model.save(two_folders[0])
    again = PriceModel.load(two_folders[0], tables)
    np.testing.assert_array_equal(again.quantiles(given), model.quantiles(given))


def test_unknown_may_be_none_or_empty_for_a_row_or_for_all(model):
    data = make_listings(20, seed=4)
    nothing = model.quantiles(Evidence(data["texts"], None, None, None))
    for unknown in (None, "", " "):
        rows = [unknown] * 20
        np.testing.assert_array_equal(
            model.quantiles(Evidence(data["texts"], rows, rows, np.full((20, DIMENSION), np.nan))), nothing
        )
    mixed = model.quantiles(Evidence(data["texts"], [None] * 10 + data["paths"][10:], None, None))
    np.testing.assert_array_equal(mixed[:10], nothing[:10])
    np.testing.assert_array_equal(mixed[10:], model.quantiles(Evidence(data["texts"], data["paths"], None, None))[10:])


def test_path_that_training_never_saw_is_its_nearest_parent(model):
    text = ["lovely\nred"]
    np.testing.assert_array_equal(
        model.quantiles(Evidence(text, ["Sport / Bicycles / Saddles / Old"])),
        model.quantiles(Evidence(text, ["Sport / Bicycles"])),
    )
    assert np.isfinite(model.quantiles(Evidence(text, ["Unheard of"], ["Nowhere"]))).all()


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(max_size=60),
    path=st.one_of(st.none(), st.sampled_from(PATHS), st.text(max_size=10)),
    county=st.one_of(st.none(), st.text(max_size=5)),
    vector=st.one_of(st.none(), st.lists(st.floats(-10, 10, width=32), min_size=DIMENSION, max_size=DIMENSION)),
)
def test_quantiles_never_cross_whatever_the_evidence(model, text, path, county, vector):
    vector = None if vector is None else np.array(vector, np.float32)
    low, median, high = model.quantiles(Evidence([text], [path], [county], None if vector is None else vector[None]))[0]
    assert low <= median <= high
    pounds = model.price_range(text, path, county, vector)
    assert list(pounds) == ["low", "median", "high", "is_informative"]
    assert [pounds[name] for name in ("low", "median", "high")] == [round(float(10**q), 2) for q in (low, median, high)]


def test_row_alone_gets_the_same_quantiles_as_among_others(model):
    data = make_listings(30, seed=5)
    together = model.quantiles(Evidence(**evidence(data)))
    for row in range(30):
        alone = model.quantiles(
            Evidence([data["texts"][row]], [data["paths"][row]], [data["counties"][row]], data["vectors"][row][None])
        )
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)


def test_margin_is_the_conformal_quantile_of_the_scores():
    model = fit(make_listings(200, seed=6))
    held_out = make_listings(99, seed=7)
    low, _, high = model.quantiles(Evidence(**evidence(held_out))).T
    truth = np.log10(held_out["prices"])
    calibrate(model, held_out)
    # (99 + 1) * 0.8: the 80th smallest of 99 scores.
    assert model.margins[0] == pytest.approx(sorted(np.maximum(low - truth, truth - high))[79], abs=1e-9)


def test_each_kind_of_evidence_has_its_own_margin_and_none_lets_quantiles_cross():
    model = fit(make_listings(100, seed=24))
    kinds = [("kettle new\nred", PATHS[1]), ("kettle new\nred", None), ("", None)]

    def quantiles(margins):
        model.margins = margins
        return np.concatenate([model.quantiles(Evidence([text], [path])) for text, path in kinds])

    plain, wide, narrow = quantiles([0.0, 0.0, 0.0]), quantiles([1.0, 2.0, 3.0]), quantiles([-9.0, -9.0, -9.0])
    np.testing.assert_allclose(wide - plain, [[-1, 0, 1], [-2, 0, 2], [-3, 0, 3]])
    np.testing.assert_array_equal(narrow, np.repeat(plain[:, 1:2], 3, axis=1))


def test_too_few_validation_prices_leave_the_margins_at_nothing():
    model = fit(make_listings(60, seed=8))
    data = make_listings(30, seed=9)
    data["plausible"][sample_sizes.LEAST_PRICED - 1 :] = False
    calibrate(model, data)
    assert model.margins == [0.0, 0.0, 0.0]


def test_listings_without_a_plausible_price_have_no_influence(two_folders):
    data = make_listings(120, seed=10)
    tables = tables_of(data)
    data["plausible"][:20] = False
    wild = {name: column.copy() for name, column in data.items()}
    wild["prices"][:20] = 0
    wild["vectors"][:20] = 1e6
    for name, garbage in (("texts", "free kettle\n£99999"), ("paths", "Nothing / Like It"), ("counties", "Nowhere")):
        wild[name][:20] = [garbage] * 20
    for folder, each in zip(two_folders, (data, wild), strict=True):
        model = fit(each, tables)
        calibrate(model, each)
        model.save(folder)
    for name in price_model.FILES:
        assert (two_folders[0] / name).read_bytes() == (two_folders[1] / name).read_bytes()


@pytest.mark.parametrize(
    "data",
    [
        make_listings(40, seed=11, kinds=2),
        make_listings(40, seed=12) | {"prices": np.full(40, 25.0)},
        make_listings(40, seed=13) | {"vectors": None},
        make_listings(40, seed=14) | {"vectors": np.full((40, DIMENSION), np.nan, np.float32)},
        make_listings(40, seed=15) | {"counties": [""] * 40},
        make_listings(40, seed=16) | {"plausible": np.arange(40) < 2},
    ],
    ids=["two categories", "equal prices", "no vectors", "no photo", "no county", "two prices"],
)
def test_small_and_odd_data_gives_prices_near_those_seen(data):
    model = fit(data)
    calibrate(model, data)
    for seen in (evidence(data), evidence(data, paths=None, counties=None, vectors=None), without_words(data)):
        medians = 10 ** model.quantiles(Evidence(**seen))[:, 1]
        assert (medians > data["prices"].min() / 1.5).all() and (medians < data["prices"].max() * 1.5).all()


def test_equal_prices_are_predicted_exactly():
    data = make_listings(40, seed=12) | {"prices": np.full(40, 25.0)}
    model = fit(data)
    calibrate(model, data)
    assert model.price_range("kettle new\nred", PATHS[1]) == {"low": 25.0, "median": 25.0, "high": 25.0, "is_informative": True}


def test_one_level_of_categories_is_enough():
    data = make_listings(60, seed=17)
    tables = tables_of(data)
    data["paths"] = [path.split(" / ")[0] for path in data["paths"]]
    model = fit(data, tables)
    assert np.isfinite(model.quantiles(Evidence(**evidence(data)))).all()
    assert np.isfinite(model.quantiles(Evidence(data["texts"], PATHS[:1] * 60))).all()  # deeper than training ever saw


def test_fewer_than_two_plausible_prices_are_one_sentence():
    data = make_listings(40, seed=18) | {"plausible": np.arange(40) < 1}
    message = "^fewer than two different training listings have a plausible price: check the column of prices in the table$"
    with pytest.raises(StageError, match=message):
        fit(data)


def test_large_data_is_fitted_on_a_sample(monkeypatch):
    monkeypatch.setattr(price_model, "MAX_LISTINGS", 50)
    data = make_listings(200, seed=19)
    sizes = []
    fit_layer = price_model.FirstLayer.fit
    monkeypatch.setattr(price_model.FirstLayer, "fit", lambda *columns: sizes.append(len(columns[3])) or fit_layer(*columns))
    fit(data)
    assert sizes == [40] * 5 + [50]


def test_boosters_learn_from_predictions_by_listings_none_of_which_is_a_duplicate(monkeypatch):
    once = make_listings(40, seed=26)
    data = {name: np.concatenate([values, values]) for name, values in once.items()}
    data["texts"] = [f"{text} {number}" for number, text in enumerate(once["texts"])] * 2
    parts = []
    fit_layer, columns_of = price_model.FirstLayer.fit, price_model.FirstLayer.columns
    monkeypatch.setattr(price_model.FirstLayer, "fit", lambda *given: parts.append(set(given[2].texts)) or fit_layer(*given))

    def columns(layer, features, vectors, evidence):
        assert not parts[-1] & set(evidence.texts)
        return columns_of(layer, features, vectors, evidence)

    monkeypatch.setattr(price_model.FirstLayer, "columns", columns)
    fit(data, clusters=np.tile(np.arange(40), 2))
    assert [len(part) for part in parts] == [32] * 5 + [40]


def test_duplicates_of_one_listing_alone_are_too_few():
    with pytest.raises(StageError, match="^fewer than two different training listings have a plausible price: "):
        fit(make_listings(40, seed=27), clusters=np.zeros(40))


def test_like_texts_are_looked_for_in_a_sample(monkeypatch):
    monkeypatch.setattr(price_model, "NEIGHBOUR_LISTINGS", 30)
    assert len(fit(make_listings(200, seed=25)).first.neighbours) == 30


def test_saved_model_gives_the_same_prices_and_equal_models_equal_bytes(model, two_folders):
    data = make_listings(30, seed=20)
    model.save(two_folders[0])
    again = PriceModel.load(two_folders[0], model.tables)
    again.save(two_folders[1])
    for seen in (evidence(data), without_words(data)):
        np.testing.assert_array_equal(again.quantiles(Evidence(**seen)), model.quantiles(Evidence(**seen)))
    for name in price_model.FILES:
        assert (two_folders[0] / name).read_bytes() == (two_folders[1] / name).read_bytes()


def test_two_fits_of_the_same_listings_write_equal_bytes(two_folders):
    for folder in two_folders:
        fit(make_listings(80, seed=21)).save(folder)
    for name in price_model.FILES:
        assert (two_folders[0] / name).read_bytes() == (two_folders[1] / name).read_bytes()


def test_damaged_or_missing_files_are_one_sentence(model, tmp_path):
    model.save(tmp_path)
    for damage in (lambda path: path.write_bytes(b"damaged"), lambda path: path.unlink()):
        damage(tmp_path / price_model.WEIGHTS)
        with pytest.raises(StageError, match="price_model.safetensors is missing or damaged: run python train.py again$"):
            PriceModel.load(tmp_path, model.tables)


def test_the_prices_told_of_listings_that_were_learned_from_are_by_models_that_had_not_seen_them():
    data = make_listings(300, seed=0)
    data["prices"][7] *= 1000
    plausible = np.arange(300) != 5
    fitted = fit(data, plausible=plausible)
    rows, quantiles = fitted.unseen_quantiles(Evidence(**evidence(data)))
    assert sorted(rows) == np.flatnonzero(plausible).tolist()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    logs = np.log10(data["prices"])[rows]
    usual = rows != 7
    seen, unseen = (
        np.abs(found[:, 1] - logs)[usual] for found in (fitted.quantiles(Evidence(**evidence(data)).take(rows)), quantiles)
    )
    held_out = make_listings(300, seed=3)
    others = np.abs(fitted.quantiles(Evidence(**evidence(held_out)))[:, 1] - np.log10(held_out["prices"]))
    assert seen.mean() < unseen.mean() < 1.3 * others.mean()
    assert logs[~usual] > quantiles[~usual, 2]


def test_a_range_is_informative_while_it_is_a_fifth_narrower_than_that_of_all_prices(model):
    cheap, dear = np.quantile(model.first.neighbour_prices, [0.1, 0.9])
    low = 10**cheap
    assert model.is_informative(low, low * 10 ** (0.79 * (dear - cheap)))
    assert not model.is_informative(low, low * 10 ** (0.81 * (dear - cheap)))
    assert not model.is_informative(0, 10**dear)
    told = model.price_range("guitar new", "Music / Guitars")
    assert told["is_informative"] == model.is_informative(told["low"], told["high"])
