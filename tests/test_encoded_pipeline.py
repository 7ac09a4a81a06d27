"""The stages with a text encoder, and the way from one to none and back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import build_index
import extract_embeddings
import train
from marketplace.cleaning import listings
from marketplace.files import atomic, generations, reading, stages
from marketplace.models.text_encoder import TEXT_TOKENS, TextEncoder
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.typed_search import CATEGORY_VECTORS
from tests.conftest import TRAIN_FLAGS, stamp


def run(main, data_dir: Path, capsys, *flags: str) -> dict:
    """The summary of a stage."""
    capsys.readouterr()
    assert main(["--data", str(data_dir), *flags]) == 0
    return json.loads(capsys.readouterr().out)


def copy(data_dir: Path, to: Path) -> Path:
    return shutil.copytree(data_dir, to / "data", ignore=shutil.ignore_patterns("raw", "tensorboard"))


@pytest.fixture(scope="module")
def encoded_dir(demo_dir, small_encoder, tmp_path_factory):
    """The demo's data folder trained, embedded and indexed with the small encoder; not to be written to."""
    data_dir = copy(demo_dir, tmp_path_factory.mktemp("encoded"))
    assert train.main(["--data", str(data_dir), *TRAIN_FLAGS, "--text-encoder", str(small_encoder)]) == 0
    assert extract_embeddings.main(["--data", str(data_dir), "--device", "cpu"]) == 0
    assert build_index.main(["--data", str(data_dir)]) == 0
    return data_dir


def texts_of(data_dir: Path) -> list[str]:
    return listings.texts(listings.read_products(data_dir / "tabular"))


def category_vectors(generation: Path) -> dict[str, np.ndarray]:
    """What each category path means."""
    return dict(
        zip(reading.read_json(generation / "filters.json")["category"], np.load(generation / CATEGORY_VECTORS), strict=True)
    )


def test_every_listing_has_the_vector_of_its_name_and_of_its_text_in_the_tables_order(encoded_dir):
    encoder, texts = TextEncoder.load(encoded_dir / "model"), texts_of(encoded_dir)
    folder = encoded_dir / "embeddings"
    names = encoder.encode([text.partition("\n")[0] for text in texts])
    np.testing.assert_array_equal(np.load(folder / "name_vectors.npy"), names)
    np.testing.assert_array_equal(np.load(folder / "meaning_vectors.npy"), encoder.encode(texts, TEXT_TOKENS))


def test_the_recommender_encodes_and_finds_names_and_meanings(encoded_dir):
    recommender = Recommender(generations.current_generation(encoded_dir / "index"), device="cpu")
    for row, text in enumerate(texts_of(encoded_dir)[:10]):
        (vector,) = recommender.text_encoder.encode([text.partition("\n")[0]])
        found, cosines = recommender.typed_search.names.nearest(vector, 5)
        assert row in found and cosines[0] == pytest.approx(1, abs=1e-5)
        (vector,) = recommender.text_encoder.encode([text], TEXT_TOKENS)
        assert row in recommender.typed_search.meanings.nearest(vector, 5)[0]


def test_every_stage_with_an_encoder_is_unchanged_when_run_again(encoded_dir, small_encoder, capsys):
    assert run(train.main, encoded_dir, capsys, *TRAIN_FLAGS, "--text-encoder", str(small_encoder))["unchanged"] is True
    assert run(extract_embeddings.main, encoded_dir, capsys, "--device", "cpu")["unchanged"] is True
    assert run(build_index.main, encoded_dir, capsys)["unchanged"] is True


def test_only_new_and_changed_texts_are_encoded_and_the_indexes_updated(encoded_dir, tmp_path, capsys):
    data_dir = copy(encoded_dir, tmp_path)
    tables = {name: reading.read_csv(data_dir / name) for name in ("tabular/products.csv", "dataset/listings.csv")}
    products = tables["tabular/products.csv"]
    products.loc[1, "description"] = "zyzzogeton"  # at the end of a long text it might not be read
    new = products.iloc[[0]].assign(product_id="new", name="Zyzzogeton", category="Insects / Zyzzogetons")
    tables["tabular/products.csv"] = pd.concat([new, products], ignore_index=True)
    listed = tables["dataset/listings.csv"]
    tables["dataset/listings.csv"] = pd.concat([listed.iloc[[0]].assign(product_id="new"), listed], ignore_index=True)
    for name, table in tables.items():
        atomic.write_csv(data_dir / name, table)
    stamp(data_dir, "tabular", "dataset")
    summary = run(extract_embeddings.main, data_dir, capsys, "--device", "cpu")
    assert (summary["names_encoded"], summary["meanings_encoded"]) == (1, 2)
    summary = run(build_index.main, data_dir, capsys)
    assert summary["updated"] and summary["changed_rows"]["names"] == 1 and summary["changed_rows"]["meanings"] == 3
    updated = Recommender(generations.current_generation(data_dir / "index"), device="cpu")
    run(build_index.main, data_dir, capsys, "--full")
    full = Recommender(generations.current_generation(data_dir / "index"), device="cpu")
    (vector,) = updated.text_encoder.encode(["zyzzogeton"])
    for ours, theirs in zip(updated.typed_search.vector_indexes, full.typed_search.vector_indexes, strict=True):
        for left, right in zip(ours.nearest(vector, 20), theirs.nearest(vector, 20), strict=True):
            np.testing.assert_array_equal(left, right)
    assert updated.typed_search.names.nearest(vector, 1)[0].tolist() == [0]
    ours, theirs = (category_vectors(data_dir / "index" / opened.generation) for opened in (updated, full))
    assert ours.keys() == theirs.keys() and "Insects / Zyzzogetons" in ours
    for path, vector in ours.items():
        np.testing.assert_allclose(vector, theirs[path], atol=1e-6)


def test_without_an_encoder_nothing_of_one_stays(encoded_dir, demo_dir, tmp_path, capsys):
    data_dir = copy(encoded_dir, tmp_path)
    run(train.main, data_dir, capsys, *TRAIN_FLAGS)
    assert build_index.main(["--data", str(data_dir)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {data_dir / 'embeddings'} was made from another model/")
    assert error.endswith(": run python extract_embeddings.py again")
    run(extract_embeddings.main, data_dir, capsys, "--device", "cpu")
    run(build_index.main, data_dir, capsys)
    for folder in ("model", "embeddings"):  # rows that are kept are in files with a digest of the models in their names
        ours, theirs = ({path.name.split("-")[0] for path in (root / folder).iterdir()} for root in (data_dir, demo_dir))
        assert ours == theirs
    generation = generations.current_generation(data_dir / "index")
    recommender = Recommender(generation, device="cpu")
    assert (
        recommender.text_encoder is None and recommender.typed_search.names is None and recommender.typed_search.meanings is None
    )
    assert not {*stages.TEXT_ENCODER, *stages.ENCODED, "names.faiss", "meanings.faiss"} & {p.name for p in generation.iterdir()}


def test_vectors_of_other_listings_than_the_tables_are_one_sentence(encoded_dir, tmp_path, capsys):
    data_dir = copy(encoded_dir, tmp_path)
    path = data_dir / "embeddings" / "name_vectors.npy"
    vectors = np.load(path)
    atomic.write_array(path, vectors[1:])
    stamp(data_dir, "embeddings")
    assert build_index.main(["--data", str(data_dir), "--full"]) == 1
    counts = f"vectors of {len(vectors) - 1} listings where the tables have {len(vectors)}"
    error = f"error: {data_dir / 'embeddings'} holds {counts}: run python extract_embeddings.py again\n"
    assert capsys.readouterr().err == error
