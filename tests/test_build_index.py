import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import build_index
from marketplace.files import atomic, changes, generations, reading, stages
from marketplace.files.stages import StageError
from marketplace.retrieval import builds, ranking
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.entries import Entries
from marketplace.retrieval.recommender import Recommender
from tests.conftest import stamp

ADDED, GONE, EDITED = 3, 2, 2  # listings: a small part of those of the demo


@pytest.fixture(scope="module")
def changed(demo_dir, tmp_path_factory):
    """The demo's index, updated after listings came, went and were edited; and one built anew from the same."""
    data_dir = tmp_path_factory.mktemp("changed") / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0  # linked to the copies of the models
    before = generations.current_generation(data_dir / "index")
    files = {path.name: path.read_bytes() for path in before.iterdir()}  # only the two newest generations stay
    products = reading.read_csv(data_dir / "tabular" / "products.csv")
    gone, edited = products["product_id"][:GONE].tolist(), products["product_id"][GONE : GONE + EDITED].tolist()
    change_listings(data_dir, gone, edited)
    assert build_index.main(["--data", str(data_dir)]) == 0
    updated = generations.current_generation(data_dir / "index")
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0
    full = generations.current_generation(data_dir / "index")
    return SimpleNamespace(
        data_dir=data_dir, before=before.name, files=files, updated=updated, full=full, gone=gone, edited=edited
    )


def change_listings(data_dir, gone, edited) -> None:
    """Take listings away, edit the names of others, and add copies of some under new ids, as the stages before would."""
    tables = {
        name: reading.read_csv(data_dir / name)
        for name in ("tabular/products.csv", "dataset/listings.csv", "dataset/training_data.csv")
    }
    image_ids = reading.read_json(data_dir / "embeddings" / "image_ids.json")
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
    rows = texts[products["product_id"].str.removeprefix("new-")].to_numpy()
    arrays["vectors"], arrays["probabilities"] = arrays["vectors"][order], arrays["probabilities"][order]
    arrays["text_vectors"] = arrays["text_vectors"][rows]
    for name, table in tables.items():
        atomic.write_csv(data_dir / name, table)
    for name, array in arrays.items():
        atomic.write_array(data_dir / "embeddings" / f"{name}.npy", array)
    atomic.write_json(data_dir / "embeddings" / "image_ids.json", photos["image_id"].tolist())
    write_hashes(data_dir)
    stamp(data_dir, "tabular", "dataset", "embeddings")


def write_hashes(data_dir) -> None:
    """What the stages of the tables write beside these."""
    tabular, dataset = data_dir / "tabular", data_dir / "dataset"
    ids = reading.read_csv(tabular / "products.csv")["product_id"]
    changes.write_records(tabular / "products_records.npy", tabular / "products.csv", ids)
    for name, columns in (("listings", ["product_id", "duplicates", "split"]), ("training_data", ["image_id", "product_id"])):
        atomic.write_array(dataset / f"{name}.npy", changes.hashed(reading.read_csv(dataset / f"{name}.csv"), columns))


def answers(recommender: Recommender, query, **options) -> tuple[set, list[float]]:
    """The listings found that the last one does not equal, a copy of another standing for that, and all scores."""
    found = recommender.recommend(query, 20, **options)
    scores = [hit["score"] for hit in found]
    surely = [hit for hit in found if hit["score"] > scores[-1] + 1e-5]
    return {(hit["product_id"].removeprefix("new-"), hit["duplicates"]) for hit in surely}, scores


def test_an_update_keeps_the_rows_of_what_did_not_change(changed):
    report = reading.read_json(changed.updated / "report.json")
    assert report["updated"] == changed.before and reading.read_json(changed.full / "report.json")["updated"] is None
    assert report["changed_rows"]["listings"] == ADDED + GONE + 2 * EDITED
    for name in ("vectors.npy", "text_vectors.npy", "index.faiss", "text.faiss", "catalogue.sqlite", "postings_rows.npy"):
        assert (changed.updated / name).read_bytes() == changed.files[name]
    rows = sum(len(np.load(changed.updated / name)) for name in ("vectors.npy", "added_vectors.npy"))
    assert report["photos"] == report["index"]["rows"] == reading.read_json(changed.full / "report.json")["photos"]
    assert report["index"]["tombstones"] == rows - report["photos"] > 0
    assert (changed.updated / "ranker.json").read_bytes() == changed.files["ranker.json"]


def test_an_update_answers_as_a_full_build_does(changed):
    updated, full = Recommender(changed.updated), Recommender(changed.full)
    products = reading.read_csv(changed.data_dir / "tabular" / "products.csv")
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
    bytes_before = stages.digests(changed.full, *(path.name for path in changed.full.iterdir()))
    assert build_index.main(["--data", str(changed.data_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == changed.full.name
    assert generations.current_generation(index_dir) == changed.full
    assert stages.digests(changed.full, *bytes_before) == bytes_before


def random_change(data_dir, generator: np.random.Generator) -> None:
    """Listings come, go and are edited; photos come, go, look different and move to other listings. None to many of each."""
    some = lambda rows: generator.random(rows) < generator.choice([0, 0.02, 0.05])  # noqa: E731
    products, listed, photos = (
        reading.read_csv(data_dir / name)
        for name in ("tabular/products.csv", "dataset/listings.csv", "dataset/training_data.csv")
    )
    folder = data_dir / "embeddings"
    vectors, probabilities, texts = (np.load(folder / f"{name}.npy") for name in ("vectors", "probabilities", "text_vectors"))
    tag = f"{generator.integers(10**6)}"
    edited = some(len(products))
    products.loc[edited, "description"] += f', now with "quotes",\na second line, and word{tag}'
    products.loc[edited, "price"] = "12.5"
    texts[edited] = np.roll(texts[edited], 1, axis=1)
    moved = some(len(photos))
    photos.loc[moved, "product_id"] = generator.choice(products["product_id"], moved.sum())
    vectors[some(len(photos))] *= -1
    copies = products[some(len(products))]
    products = pd.concat(
        [products, copies.assign(product_id=f"{tag}-" + copies["product_id"], town=f"Town {tag}")], ignore_index=True
    )
    more = listed[listed["product_id"].isin(copies["product_id"])]
    listed = pd.concat([listed, more.assign(product_id=f"{tag}-" + more["product_id"])], ignore_index=True)
    more = np.flatnonzero(photos["product_id"].isin(copies["product_id"]))
    new = photos.iloc[more]
    new = new.assign(image_id=f"{tag}-" + new["image_id"], product_id=f"{tag}-" + new["product_id"])
    photos, texts = pd.concat([photos, new], ignore_index=True), np.concatenate([texts, texts[copies.index]])
    vectors, probabilities = (np.concatenate([rows, rows[more]]) for rows in (vectors, probabilities))
    gone = set(products["product_id"][some(len(products))])
    left = np.flatnonzero(~products["product_id"].isin(gone))
    products, texts = products.iloc[left], texts[left]
    kept = generator.permutation(np.flatnonzero(~photos["product_id"].isin(gone) & ~some(len(photos))))
    photos, vectors, probabilities = photos.iloc[kept], vectors[kept], probabilities[kept]
    atomic.write_csv(data_dir / "tabular" / "products.csv", products)
    atomic.write_csv(data_dir / "dataset" / "listings.csv", listed[~listed["product_id"].isin(gone)])
    atomic.write_csv(data_dir / "dataset" / "training_data.csv", photos)
    for name, array in {"vectors": vectors, "probabilities": probabilities, "text_vectors": texts}.items():
        atomic.write_array(folder / f"{name}.npy", array)
    atomic.write_json(folder / "image_ids.json", photos["image_id"].tolist())
    write_hashes(data_dir)
    stamp(data_dir, "tabular", "dataset", "embeddings")


def everything(generation: Path) -> dict:
    """What a generation answers, by ids."""
    opened = Recommender(generation)
    listed = opened.catalogue
    rows = np.flatnonzero(listed.live)
    found = {}
    for row, product in zip(rows.tolist(), listed.products(rows), strict=True):
        photos = listed.photos_of(row)
        found[product["product_id"]] = {
            "product": product,
            "row": listed.product_row(product["product_id"]) == row,
            "photos": {
                name: opened.photo_index.vectors[photo].tobytes()
                for name, photo in zip(listed.image_ids(photos), photos, strict=True)
            },
            "text": opened.text_index.vectors[row].tobytes(),
            "duplicates": sorted(copy["product_id"] for copy in listed.products(listed.duplicates_of(row))),
            "similar": [round(hit["score"], 4) for hit in opened.recommend(opened.query_of(row), 10)],
        }
    words = {}
    for query in ("quotes second line", "bik", "guitra", "table with chairs", "the"):
        best = listed.match_words(query, 10_000)
        words[query] = {product["product_id"] for product in listed.products(best)}
    return {"listings": found, "words": words, "choices": listed.choices()}


@pytest.mark.parametrize("seed", range(4))
def test_updates_one_after_another_answer_as_full_builds_do(seed, demo_dir, tmp_path):
    generator = np.random.default_rng(seed)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(demo_dir, ours, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    updates = 0
    for _ in range(3):
        random_change(ours, generator)
        assert build_index.main(["--data", str(ours)]) == 0
        updated = generations.current_generation(ours / "index")
        updates += reading.read_json(updated / "report.json")["updated"] is not None
        shutil.copytree(ours, theirs)
        assert build_index.main(["--data", str(theirs), "--full"]) == 0
        assert everything(updated) == everything(generations.current_generation(theirs / "index"))
        shutil.rmtree(theirs)
    assert updates


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 1, 3, 6, 12, 20, 25])
def test_an_update_killed_at_any_moment_ends_with_the_same_bytes(after, changed, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)  # as it is after a full build
    random_change(data_dir, np.random.default_rng(1))
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(data_dir, undisturbed)
    assert build_index.main(["--data", str(undisturbed)]) == 0
    expected = generations.current_generation(undisturbed / "index")
    assert reading.read_json(expected / "report.json")["updated"] == changed.full.name
    published = generations.current_generation(data_dir / "index")
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    calls = iter(range(after))
    flush = atomic.flush

    def killed(path):
        if next(calls, None) is None:
            raise Killed
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush", killed)
        with pytest.raises(Killed):
            build_index.main(["--data", str(data_dir)])
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before
    assert build_index.main(["--data", str(data_dir)]) == 0
    found = generations.current_generation(data_dir / "index")
    files = [path.name for path in sorted(expected.iterdir())]
    assert found.name == expected.name and files == [path.name for path in sorted(found.iterdir())]
    assert all((found / name).read_bytes() == (expected / name).read_bytes() for name in files if name != "report.json")


def test_a_table_changed_by_hand_asks_for_the_stage_that_wrote_it(changed, tmp_path, capsys):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    path = data_dir / "dataset" / "listings.csv"
    path.write_text(path.read_text().replace("train", "trail", 1))
    assert build_index.main(["--data", str(data_dir)]) == 1
    assert capsys.readouterr().err == f"error: {path} has been changed: run python dataset.py again\n"


def test_an_update_imports_neither_torch_nor_the_models(changed, tmp_path):
    code = "import sys, build_index; build_index.main(sys.argv[1:]); print([m for m in sys.modules if m in {'torch', 'sklearn'}])"
    shutil.copytree(changed.data_dir, tmp_path / "data")
    random_change(tmp_path / "data", np.random.default_rng(1))
    run = subprocess.run(
        [sys.executable, "-c", code, "--data", str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert '"updated": null' not in run.stdout and run.stdout.splitlines()[-1] == "[]"


def test_photos_that_no_listing_claims_are_updated_too(demo_dir, tmp_path):
    data_dir, path = tmp_path / "data", tmp_path / "own.json"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    ids, generator = reading.read_json(data_dir / "embeddings" / "image_ids.json"), np.random.default_rng(0)
    own = {name: generator.normal(size=8).tolist() for name in [*ids, "nobody-1", "nobody-2"]}
    path.write_text(json.dumps(own))
    assert build_index.main(["--data", str(data_dir), "--embeddings", str(path)]) == 0
    del own["nobody-1"]
    own = {"nobody-3": own["nobody-2"], **own}  # the first of all, and one that looks like another
    path.write_text(json.dumps(own))
    assert build_index.main(["--data", str(data_dir), "--embeddings", str(path)]) == 0
    updated = generations.current_generation(data_dir / "index")
    report = reading.read_json(updated / "report.json")
    assert report["updated"] and report["changed_rows"] == {"photos": 2, "listings": 2} and report["photos_without_listing"] == 2
    listed = Recommender(updated).catalogue
    assert listed.product_row("nobody-1") is None and not listed.has_photo("nobody-1")
    for name in ("nobody-2", "nobody-3"):
        assert listed.image_ids(listed.photos_of(listed.product_row(name))) == [name]
    assert build_index.main(["--data", str(data_dir), "--embeddings", str(path), "--full"]) == 0
    assert everything(updated) == everything(generations.current_generation(data_dir / "index"))


@pytest.mark.parametrize("name", ["catalogue.sqlite", "photo_keys.npy", "index.faiss", "ranker.json", "vectors.npy"])
@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100] + b"damaged")]
)
def test_a_damaged_generation_is_made_whole_as_its_reader_says(name, damage, changed, tmp_path):
    shutil.copytree(changed.data_dir, tmp_path / "data")
    folder = generations.current_generation(tmp_path / "data" / "index")
    damage(folder / name)
    with pytest.raises(StageError, match=r"run python build_index.py|is missing"):
        Recommender(folder)
    for flags in ([], ["--full"]):  # without the flag too, where an update would read what is damaged
        assert build_index.main(["--data", str(tmp_path / "data"), *flags]) == 0
    Recommender(generations.current_generation(tmp_path / "data" / "index"))


def nudge(path: Path) -> None:
    """Change a bit of the last value, which leaves the file readable and as long as it was."""
    octets = bytearray(path.read_bytes())
    octets[-2] ^= 1
    path.write_bytes(octets)


@pytest.mark.parametrize("name", ["price.npy", "duplicates.npy", "filters.json", "words.npy", "catalogue.sqlite", "vectors.npy"])
@pytest.mark.parametrize("damage", [Path.unlink, nudge])
def test_an_update_follows_no_damaged_generation(name, damage, changed, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    damage(generations.current_generation(data_dir / "index") / name)
    products = reading.read_csv(data_dir / "tabular" / "products.csv")
    products.loc[0, "name"] += " edited"
    atomic.write_csv(data_dir / "tabular" / "products.csv", products)
    write_hashes(data_dir)
    stamp(data_dir, "tabular", "dataset", "embeddings")
    assert build_index.main(["--data", str(data_dir)]) == 0
    published = generations.current_generation(data_dir / "index")
    assert reading.read_json(published / "report.json")["updated"] is None
    listed = Recommender(published).catalogue
    assert [product["name"] for product in listed.products(range(listed.n_products))] == products["name"].tolist()


def published_models(changed) -> dict[str, str]:
    return reading.read_json(generations.current_generation(changed.data_dir / "index") / "report.json")["settings"]["models"]


def test_an_update_follows_only_what_was_built_with_the_same_models(changed):
    published, keys = builds.Published.read(changed.data_dir / "index"), Entries.read(changed.data_dir).keys()
    models = published_models(changed)
    settings = builds.BuildSettings("auto", 0.95, None, models, False, published.report["dimension"])
    other = dataclasses.replace(settings, models=models | {"model/image_model.json": "another"})
    assert isinstance(builds.plan(published, settings, keys), builds.Update)
    assert isinstance(builds.plan(published, settings, keys, full=True), builds.FullBuild)
    assert isinstance(builds.plan(published, other, keys), builds.FullBuild)
    assert published.ranks_alike(settings) and not published.ranks_alike(other)


def test_an_index_that_is_not_there_or_of_another_version_is_not_followed(changed, tmp_path):
    shutil.copytree(changed.data_dir / "index", tmp_path / "index")
    keys, models = Entries.read(changed.data_dir).keys(), published_models(changed)
    path = generations.current_generation(tmp_path / "index") / "report.json"
    report = reading.read_json(path)
    settings = builds.BuildSettings("auto", 0.95, None, models, False, report["dimension"])
    assert isinstance(builds.plan(builds.Published.read(tmp_path / "index"), settings, keys), builds.Update)
    atomic.write_json(path, report | {"schema": report["schema"] - 1})
    for index_dir in (tmp_path / "index", tmp_path / "nowhere"):
        published = builds.Published.read(index_dir)
        build = builds.plan(published, settings, keys)
        assert isinstance(build, builds.FullBuild) and not build.keeps_ranker(enough=True)
        assert not published.ranks_alike(settings) and not published.is_whole()


def test_an_index_that_would_outgrow_its_memory_is_built_anew(changed):
    published, keys = builds.Published.read(changed.data_dir / "index"), Entries.read(changed.data_dir).keys()
    built_bytes = (changed.full / "index.faiss").stat().st_size
    rows = published.rows_after(keys)
    for max_memory_bytes, outgrown in ((built_bytes, False), (built_bytes - 1, True)):
        settings = builds.BuildSettings("auto", 0.95, max_memory_bytes, {}, False, published.report["dimension"])
        assert published.is_outgrown(rows, settings) is outgrown


def test_a_full_build_fits_the_ranker_where_there_were_too_few_listings_before(demo_dir, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features", "index"))

    def queries_of(*flags: str) -> int | None:
        assert build_index.main(["--data", str(data_dir), *flags]) == 0
        return reading.read_json(generations.current_generation(data_dir / "index") / "report.json")["ranker"].get("queries")

    assert queries_of() is None
    monkeypatch.setattr(build_index, "LEAST_JUDGED", 2)
    random_change(data_dir, np.random.default_rng(1))
    assert queries_of() is None  # an update keeps the weights
    fitted = queries_of("--full")
    assert fitted
    monkeypatch.setattr(ranking, "JUDGED_LISTINGS", 1)
    random_change(data_dir, np.random.default_rng(2))
    assert queries_of("--full") == fitted  # kept, as the models are the same
