import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import build_index
from marketplace import storage
from marketplace.catalogue import Filters, Rows
from marketplace.recommender import Recommender

ADDED, GONE, EDITED = 3, 2, 2  # listings: a small part of those of the demo


@pytest.fixture(scope="module")
def changed(demo_dir, tmp_path_factory):
    """The demo's index, updated after listings came, went and were edited; and one built anew from the same."""
    data_dir = tmp_path_factory.mktemp("changed") / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0  # linked to the copies of the models
    before = storage.current_generation(data_dir / "index")
    vectors = np.load(before / "vectors.npy")  # only the two newest generations stay
    products = storage.read_csv(data_dir / "tabular" / "products.csv")
    gone, edited = products["product_id"][:GONE].tolist(), products["product_id"][GONE : GONE + EDITED].tolist()
    change_listings(data_dir, gone, edited)
    assert build_index.main(["--data", str(data_dir)]) == 0
    updated = storage.current_generation(data_dir / "index")
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0
    full = storage.current_generation(data_dir / "index")
    return SimpleNamespace(
        data_dir=data_dir, before=before.name, vectors=vectors, updated=updated, full=full, gone=gone, edited=edited
    )


def change_listings(data_dir, gone, edited) -> None:
    """Take listings away, edit the names of others, and add copies of some under new ids, as the stages before would."""
    tables = {
        name: storage.read_csv(data_dir / name)
        for name in ("tabular/products.csv", "dataset/listings.csv", "dataset/training_data.csv")
    }
    image_ids = storage.read_json(data_dir / "embeddings" / "image_ids.json")
    arrays = {name: np.load(data_dir / "embeddings" / f"{name}.npy") for name in ("vectors", "probabilities", "text_vectors")}
    products = tables["tabular/products.csv"]
    copied = products["product_id"].iloc[-ADDED:].tolist()
    texts = pd.Series(range(len(products)), index=products["product_id"])
    photos = tables["dataset/training_data.csv"]
    assert photos["image_id"].tolist() == image_ids
    kept = ~photos["product_id"].isin(gone).to_numpy()
    more = np.flatnonzero(photos["product_id"].isin(copied))
    order = np.concatenate([more, np.flatnonzero(kept)])  # new ones first: entries do not stand in the order of rows
    photos = photos.iloc[order].reset_index(drop=True)
    photos.loc[: len(more) - 1, "image_id"] = [f"new-{n}" for n in range(len(more))]
    photos.loc[: len(more) - 1, "product_id"] = "new-" + photos.loc[: len(more) - 1, "product_id"]
    tables["dataset/training_data.csv"] = photos
    for name in ("tabular/products.csv", "dataset/listings.csv"):
        table = tables[name]
        copies = table[table["product_id"].isin(copied)].assign(product_id=lambda rows: "new-" + rows["product_id"])
        tables[name] = pd.concat([copies, table[~table["product_id"].isin(gone)]], ignore_index=True)
    products = tables["tabular/products.csv"]
    products.loc[products["product_id"].isin(edited), "name"] += " zyzzogeton"
    of_text = texts[products["product_id"].str.removeprefix("new-")].to_numpy()
    arrays["vectors"], arrays["probabilities"] = arrays["vectors"][order], arrays["probabilities"][order]
    arrays["text_vectors"] = arrays["text_vectors"][of_text]
    for name, table in tables.items():
        storage.write_csv(data_dir / name, table)
    for name, array in arrays.items():
        storage.write_array(data_dir / "embeddings" / f"{name}.npy", array)
    storage.write_json(data_dir / "embeddings" / "image_ids.json", photos["image_id"].tolist())
    storage.write_json(data_dir / "embeddings" / "product_ids.json", products["product_id"].tolist())
    for stage in ("dataset", "embeddings"):
        manifest = storage.read_json(data_dir / stage / "manifest.json")
        manifest["inputs"] = storage.digests(data_dir, *manifest["inputs"])
        storage.write_json(data_dir / stage / "manifest.json", manifest)


def answers(recommender: Recommender, query, **options) -> tuple[set, list[float]]:
    """The listings found that the last one does not equal, a copy of another standing for that, and all scores."""
    found = recommender.recommend(query, 20, **options)
    scores = [hit["score"] for hit in found]
    surely = [hit for hit in found if hit["score"] > scores[-1] + 1e-5]
    return {(hit["product_id"].removeprefix("new-"), hit["duplicates"]) for hit in surely}, scores


def test_an_update_keeps_the_rows_of_what_did_not_change(changed):
    report = storage.read_json(changed.updated / "report.json")
    assert report["updated"] == changed.before and storage.read_json(changed.full / "report.json")["updated"] is None
    assert report["changed_rows"]["listings"] == ADDED + GONE + 2 * EDITED
    after = np.load(changed.updated / "vectors.npy")
    np.testing.assert_array_equal(after[: len(changed.vectors)], changed.vectors)
    assert report["photos"] == report["index"]["rows"] == storage.read_json(changed.full / "report.json")["photos"]
    assert report["index"]["tombstones"] == len(after) - report["photos"] > 0
    assert report["ranker"] == "kept"


def test_an_update_answers_as_a_full_build_does(changed):
    updated, full = Recommender(changed.updated), Recommender(changed.full)
    products = storage.read_csv(changed.data_dir / "tabular" / "products.csv")
    category, county = products["category"].iloc[-1], products["county"].iloc[-1]
    for product_id in products["product_id"]:
        row, same = updated.catalogue.product_row(product_id), full.catalogue.product_row(product_id)
        assert updated.catalogue.product(row) == full.catalogue.product(same)
        for filters in (Filters(), Filters(category=category), Filters(min_price=20), Filters(location=county)):
            ours, our_scores = answers(updated, updated.query_of(row), filters=filters)
            theirs, their_scores = answers(full, full.query_of(same), filters=filters)
            np.testing.assert_allclose(our_scores, their_scores, atol=2e-6)
            assert ours == theirs
    assert updated.catalogue.choices() == full.catalogue.choices()
    for name in products["name"]:
        ours, our_scores = answers(updated, updated.query(text=name))
        theirs, their_scores = answers(full, full.query(text=name))
        np.testing.assert_allclose(our_scores, their_scores, atol=0.02)  # listings' mean length stays that of the full build
        assert len(ours & theirs) >= 0.9 * len(theirs)


def test_what_is_gone_is_found_no_more_and_what_is_new_is_found(changed):
    updated = Recommender(changed.updated)
    for product_id in changed.gone:
        assert updated.catalogue.product_row(product_id) is None
    found = {hit["product_id"] for hit in updated.recommend(updated.query(text="the a of in"), 100)}
    assert not found & set(changed.gone) and len(found) > 10
    edited = [hit["product_id"] for hit in updated.recommend(updated.query(text="zyzzogeton"), EDITED)]
    assert sorted(edited) == sorted(changed.edited)


def test_the_same_again_is_unchanged_and_a_lost_manifest_publishes_nothing_new(changed, capsys):
    index_dir = changed.data_dir / "index"
    assert build_index.main(["--data", str(changed.data_dir), "--full"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    (index_dir / "manifest.json").unlink()  # as of a run that was killed after it had published
    bytes_before = storage.digests(changed.full, *(path.name for path in changed.full.iterdir()))
    assert build_index.main(["--data", str(changed.data_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == changed.full.name
    assert storage.current_generation(index_dir) == changed.full
    assert storage.digests(changed.full, *bytes_before) == bytes_before


@given(st.data())
def test_rows_are_appended_and_never_moved(data):
    before: np.ndarray | None = None
    keys: list[int] = []
    for _ in range(data.draw(st.integers(1, 4))):
        keys = data.draw(st.lists(st.integers(1, 30), unique=True))
        rows = Rows.plan(np.array(keys, np.uint64), before)
        by_row = rows.spread(np.array(keys, np.uint64), 0)
        known = [] if before is None else before.tolist()
        assert by_row[rows.of].tolist() == keys and rows.total == len(by_row) == len(known) + sum(rows.added)
        for row, key in enumerate(known):
            assert by_row[row] in (key, 0) and (by_row[row] == key) == (key in keys and key != 0 or key == 0)
        assert rows.removed.tolist() == [row for row, key in enumerate(known) if key and key not in keys]
        assert [key for key, new in zip(keys, rows.added, strict=True) if new] == [key for key in keys if key not in known]
        before = by_row
