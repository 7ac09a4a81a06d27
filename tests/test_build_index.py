import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pandas as pd
import pytest

import build_index
from marketplace.files import atomic, generations, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import builds, keys, ranker_fit
from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.catalogue import Filters
from marketplace.retrieval.open_index import Query
from marketplace.retrieval.recommender import Recommender
from tests.conftest import stamp
from tests.files.asked import files_below

ADDED, GONE, EDITED = 3, 2, 2  # listings: a small part of those of the demo


@pytest.fixture(scope="module")
def changed(demo_dir, tmp_path_factory):
    """The demo's index, updated after listings came, went and were edited; and one built anew from the same."""
    data_dir = tmp_path_factory.mktemp("changed") / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0  # linked to the copies of the models
    before = generations.current_generation(data_dir / "index")
    files = files_below(before)  # only the two newest generations stay
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


def change_listings(data_dir, gone, edited, copies=ADDED) -> None:
    """Take listings away, edit the names of others, and add copies of some under new ids, as the stages before would."""
    tables = {
        name: reading.read_csv(data_dir / name)
        for name in ("tabular/products.csv", "dataset/listings.csv", "dataset/training_data.csv")
    }
    image_ids = reading.read_json(data_dir / "embeddings" / "image_ids.json")
    arrays = {name: np.load(data_dir / "embeddings" / f"{name}.npy") for name in ("vectors", "probabilities", "text_vectors")}
    products = tables["tabular/products.csv"]
    copied = products["product_id"].iloc[len(products) - copies :].tolist()
    texts = pd.Series(range(len(products)), index=products["product_id"])
    photos = tables["dataset/training_data.csv"]
    assert photos["image_id"].tolist() == image_ids
    kept = ~photos["product_id"].isin(gone).to_numpy()
    more = np.flatnonzero(photos["product_id"].isin(copied))
    order = np.concatenate([more, np.flatnonzero(kept)])  # new ones first: entries do not stand in the order of rows
    photos = photos.iloc[order].reset_index(drop=True)
    photos.loc[photos.index < len(more), "image_id"] = [f"new-{n}" for n in range(len(more))]
    photos.loc[photos.index < len(more), "product_id"] = "new-" + photos["product_id"]
    tables["dataset/training_data.csv"] = photos
    for name in ("tabular/products.csv", "dataset/listings.csv"):
        table = tables[name]
        new = table[table["product_id"].isin(copied)].assign(product_id=lambda rows: "new-" + rows["product_id"])
        tables[name] = pd.concat([new, table[~table["product_id"].isin(gone)]], ignore_index=True)
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
    stamp(data_dir, "tabular", "dataset", "embeddings")


def answers(recommender: Recommender, query, **options) -> tuple[set, list[float]]:
    """The listings found that the last one does not equal, a copy of another standing for that, and all scores."""
    found = recommender.recommend(query, 20, **options)
    scores = [hit["score"] for hit in found]
    surely = [hit for hit in found if hit["score"] > scores[-1] + 1e-5]
    return {(hit["product_id"].removeprefix("new-"), hit["duplicates"]) for hit in surely}, scores


def but_for_words(generation: Path) -> dict[str, bytes]:
    """The files of a generation without those of its word index, to which tantivy gives random names."""
    return {name: content for name, content in files_below(generation).items() if not name.startswith("words/")}


def test_an_update_writes_what_is_there_now_in_the_order_of_the_tables(changed):
    report, full = (reading.read_json(folder / "report.json") for folder in (changed.updated, changed.full))
    assert report["updated"] == changed.before and full["updated"] is None
    assert report["changed_rows"]["listings"] == ADDED + GONE + 2 * EDITED
    assert report["drift"] == report["changed_rows"] and full["drift"] == {"photos": 0, "listings": 0}
    assert report["photos"] == report["index"]["rows"] == full["photos"]
    ours, theirs = but_for_words(changed.updated), but_for_words(changed.full)
    engines = {"index.faiss", "text.faiss", "report.json"}  # these keep what did not change where it was
    assert ours.keys() == theirs.keys() and {name for name in ours if ours[name] != theirs[name]} <= engines
    assert ours["ranker.json"] == changed.files["ranker.json"]
    ids = reading.read_json(changed.data_dir / "embeddings" / "image_ids.json")
    np.testing.assert_array_equal(np.load(changed.updated / "photo_keys.npy"), keys.keys(ids))
    for kind in report["built_rows"]:
        files = vector_search.FILES[kind]
        index = vector_search.VectorIndex.open(changed.updated, files).index
        assert sorted(faiss.vector_to_array(index.id_map)) == sorted(np.load(changed.updated / files.keys)), kind


def test_what_is_deleted_is_in_no_file_of_the_new_generation(changed, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    table = reading.read_csv(data_dir / "tabular" / "products.csv")
    table.loc[5, "description"] += " xylographique"
    gone = table["product_id"][5]
    atomic.write_csv(data_dir / "tabular" / "products.csv", table)
    stamp(data_dir, "tabular", "dataset", "embeddings")
    assert build_index.main(["--data", str(data_dir)]) == 0
    photos = reading.read_csv(data_dir / "dataset" / "training_data.csv").query("product_id == @gone")["image_id"].tolist()
    assert photos
    before = files_below(generations.current_generation(data_dir / "index"))
    texts = [name.encode() for name in (gone, *photos, "xylographique")]
    secret = [*texts, *(key.tobytes() for key in keys.keys([gone, *photos]))]
    assert all(any(octets in content for content in before.values()) for octets in secret)
    change_listings(data_dir, [gone], [], copies=0)
    assert build_index.main(["--data", str(data_dir), "--purge"]) == 0
    updated = generations.current_generation(data_dir / "index")
    assert reading.read_json(updated / "report.json")["updated"] and reading.read_json(updated / "report.json")["purged"]
    for name, content in files_below(updated).items():
        assert not [octets for octets in secret if octets in content], name


def test_a_purge_makes_a_generation_of_its_own_once(changed, tmp_path, capsys):
    shutil.copytree(changed.data_dir, tmp_path / "data")
    random_change(tmp_path / "data", np.random.default_rng(1))
    made = []
    for flags in ([], ["--purge"], ["--purge"], []):
        assert build_index.main(["--data", str(tmp_path / "data"), *flags]) == 0
        made.append(generations.current_generation(tmp_path / "data" / "index"))
    assert made[0] != made[1] == made[2] == made[3]
    assert reading.read_json(made[1] / "report.json")["changed_rows"] == {"photos": 0, "listings": 0}
    assert everything(made[0]) == everything(made[1])


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
        _, our_scores = answers(updated, updated.query(text=name))
        _, their_scores = answers(full, full.query(text=name))
        # Until tantivy merges its segments, BM25 counts the words of listings that are gone too.
        np.testing.assert_allclose(our_scores, their_scores, atol=0.05)


def test_a_purged_update_answers_words_as_a_full_build_does(changed, tmp_path):
    shutil.copytree(changed.data_dir, tmp_path / "data")
    random_change(tmp_path / "data", np.random.default_rng(1))
    made = []
    for flags in (["--purge"], ["--full"]):
        assert build_index.main(["--data", str(tmp_path / "data"), *flags]) == 0
        made.append(Recommender(generations.current_generation(tmp_path / "data" / "index")))
    for row, listing in enumerate(made[0].catalogue.products(range(made[0].catalogue.n_products))):
        (ours, our_scores), (theirs, their_scores) = (answers(opened, opened.query(text=listing["name"])) for opened in made)
        np.testing.assert_allclose(our_scores, their_scores, atol=2e-6)
        assert ours == theirs, row


def test_what_is_gone_is_found_no_more_and_what_is_new_is_found(changed):
    updated = Recommender(changed.updated)
    for product_id in changed.gone:
        assert updated.catalogue.product_row(product_id) is None
    for query, least in ((updated.typed("a of in"), 5), (Query(), updated.catalogue.n_products)):
        found = {hit["product_id"] for hit in updated.search(query, 1000).results}
        assert not found & set(changed.gone) and len(found) >= least
    edited = [hit["product_id"] for hit in updated.search(updated.typed("zyzzogeton"), EDITED).results]
    assert sorted(edited) == sorted(changed.edited)


def test_the_same_again_is_unchanged_and_a_lost_manifest_publishes_nothing_new(changed, capsys):
    index_dir = changed.data_dir / "index"
    assert build_index.main(["--data", str(changed.data_dir), "--full"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    (index_dir / "manifest.json").unlink()  # as of a run that was killed after it had published
    bytes_before = files_below(changed.full)
    assert build_index.main(["--data", str(changed.data_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == changed.full.name
    assert generations.current_generation(index_dir) == changed.full
    assert files_below(changed.full) == bytes_before


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
    stamp(data_dir, "tabular", "dataset", "embeddings")


def everything(generation: Path) -> dict:
    """What a generation answers, by ids."""
    opened = Recommender(generation)
    listed = opened.catalogue
    rows = np.arange(listed.n_products)
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
        best = opened.typed_search.find(opened.typed_search.read(query), 10_000)
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
def test_an_update_killed_at_any_moment_ends_with_the_same_bytes_and_answers(after, changed, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)  # as it is after a full build
    random_change(data_dir, np.random.default_rng(1))
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(data_dir, undisturbed)
    assert build_index.main(["--data", str(undisturbed)]) == 0
    expected = generations.current_generation(undisturbed / "index")
    assert reading.read_json(expected / "report.json")["updated"] == changed.full.name
    published = generations.current_generation(data_dir / "index")
    before = files_below(published)
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
    assert files_below(published) == before
    assert build_index.main(["--data", str(data_dir)]) == 0
    found = generations.current_generation(data_dir / "index")
    ours, theirs = but_for_words(found), but_for_words(expected)
    assert found.name == expected.name and ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"report.json"}  # it tells times
    assert everything(found) == everything(expected)


KILLED_UPDATE = """
import itertools, os, signal, sys
import build_index

changes = itertools.count(1)

def deadly(change):
    def call(*arguments, **options):
        if next(changes) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)
    return call

for name in ("replace", "fsync", "unlink", "mkdir", "rmdir", "link"):
    setattr(os, name, deadly(getattr(os, name)))
sys.exit(build_index.main(sys.argv[2:]))
"""


def test_sigkill_at_random_moments_of_an_update_leaves_the_old_generation_or_the_new_one(changed, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    random_change(data_dir, np.random.default_rng(1))
    opened = Recommender(generations.current_generation(data_dir / "index"))  # served meanwhile
    answer, old = opened.recommend(opened.query_of(3), 10), everything(changed.full)
    generator, moment, found = np.random.default_rng(0), 0, []
    ended = False
    while not ended:
        moment += int(generator.integers(1, 20))
        run = subprocess.run([sys.executable, "-c", KILLED_UPDATE, str(moment), "--data", str(data_dir)], capture_output=True)
        ended = run.returncode == 0
        assert ended or run.returncode == -signal.SIGKILL, run.stderr
        found.append(everything(generations.current_generation(data_dir / "index")))
        assert opened.recommend(opened.query_of(3), 10) == answer
    assert len(found) > 5 and found[0] == old and all(answers in (old, found[-1]) for answers in found)
    assert build_index.main(["--data", str(data_dir), "--full"]) == 0
    assert found[-1] == everything(generations.current_generation(data_dir / "index"))


def test_a_generation_that_is_there_whole_is_published_as_it_is_and_a_damaged_one_is_never_written_to(changed, tmp_path, capsys):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    random_change(data_dir, np.random.default_rng(1))
    index_dir = data_dir / "index"
    assert build_index.main(["--data", str(data_dir)]) == 0
    made = generations.current_generation(index_dir)

    def killed_before_it_was_published() -> None:
        generations.publish(index_dir, changed.full.name)
        (index_dir / "manifest.json").unlink()

    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    killed_before_it_was_published()
    assert build_index.main(["--data", str(data_dir)]) == 0
    assert generations.current_generation(index_dir) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    killed_before_it_was_published()
    (made / "price.npy").write_bytes(b"damaged")
    before = files_below(made)
    assert build_index.main(["--data", str(data_dir)]) == 0
    again = generations.current_generation(index_dir)
    assert again.name == f"{made.name}-2" and reading.read_json(again / "report.json")["generation"] == again.name
    assert not made.exists() or files_below(made) == before


def test_ids_whose_keys_collide_are_one_sentence(changed, tmp_path, monkeypatch, capsys):
    shutil.copytree(changed.data_dir, tmp_path / "data")
    random_change(tmp_path / "data", np.random.default_rng(1))
    ids = reading.read_csv(tmp_path / "data" / "tabular" / "products.csv")["product_id"]
    own = keys.keys
    monkeypatch.setattr(keys, "keys", lambda names: np.where(np.array(names) == ids[4], own([ids[9]]), own(names)))
    assert build_index.main(["--data", str(tmp_path / "data")]) == 1
    first, second = sorted((4, 9))
    assert capsys.readouterr().err == (
        f"error: the ids {ids[first]} and {ids[second]} have the same key: give one of them another id in the export\n"
    )


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
    assert listed.product_row("nobody-1") is None and listed.photo_row("nobody-1") is None
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


@pytest.mark.parametrize(
    "name", ["price.npy", "duplicates.npy", "filters.json", "content.npy", "catalogue.sqlite", "vectors.npy"]
)
@pytest.mark.parametrize("damage", [Path.unlink, nudge])
def test_an_update_follows_no_damaged_generation(name, damage, changed, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(changed.data_dir, data_dir)
    damage(generations.current_generation(data_dir / "index") / name)
    products = reading.read_csv(data_dir / "tabular" / "products.csv")
    products.loc[0, "name"] += " edited"
    atomic.write_csv(data_dir / "tabular" / "products.csv", products)
    stamp(data_dir, "tabular", "dataset", "embeddings")
    assert build_index.main(["--data", str(data_dir)]) == 0
    published = generations.current_generation(data_dir / "index")
    assert reading.read_json(published / "report.json")["updated"] is None
    listed = Recommender(published).catalogue
    assert [product["name"] for product in listed.products(range(listed.n_products))] == products["name"].tolist()


def published_models(changed) -> dict[str, str]:
    return reading.read_json(generations.current_generation(changed.data_dir / "index") / "report.json")["settings"]["models"]


def test_an_update_follows_only_what_was_built_with_the_same_models(changed):
    published = builds.Published.current(changed.data_dir / "index")
    models = published_models(changed)
    settings = builds.BuildSettings("auto", 0.95, None, models, False, published.report["dimension"])
    other = dataclasses.replace(settings, models=models | {"model/image_model.json": "another"})
    assert published.was_built_with(settings) and not published.was_built_with(other)
    assert published.ranks_alike(settings) and not published.ranks_alike(other)


def test_an_index_that_is_not_there_or_of_another_version_is_not_followed(changed, tmp_path):
    shutil.copytree(changed.data_dir / "index", tmp_path / "index")
    models = published_models(changed)
    path = generations.current_generation(tmp_path / "index") / "report.json"
    report = reading.read_json(path)
    settings = builds.BuildSettings("auto", 0.95, None, models, False, report["dimension"])
    assert builds.Published.current(tmp_path / "index").was_built_with(settings)
    atomic.write_json(path, report | {"schema": report["schema"] - 1})
    for index_dir in (tmp_path / "index", tmp_path / "nowhere"):
        published = builds.Published.current(index_dir)
        assert not published.was_built_with(settings) and not published.ranks_alike(settings) and not published.is_whole()


def no_changes(count: int = 0) -> builds.Changes:
    return builds.Changes(np.arange(count), np.empty(0, np.int64))


def test_an_index_that_would_outgrow_its_memory_is_built_anew(changed):
    published = builds.Published.current(changed.data_dir / "index")
    built_bytes = (changed.full / "index.faiss").stat().st_size
    rows, changes = published.report["built_rows"], {"photos": no_changes(), "listings": no_changes()}
    for max_memory_bytes, outgrown in ((built_bytes, False), (built_bytes - 1, True)):
        settings = builds.BuildSettings("auto", 0.95, max_memory_bytes, {}, False, published.report["dimension"])
        assert published.is_outgrown(changes, rows, settings) is outgrown


@pytest.mark.parametrize("kind", ["photos", "listings"])
def test_an_index_of_which_a_fifth_has_changed_over_many_updates_is_built_anew(kind, changed):
    rows = reading.read_json(changed.full / "report.json")["built_rows"]
    most = int(vector_search.MAX_DRIFT * rows[kind])
    settings = builds.BuildSettings("auto", 0.95, None, {}, False, 0)
    for changed_now, outgrown in ((most - 2, False), (most - 1, True)):
        report = {"built_rows": rows, "photos": rows["photos"], "drift": {"photos": 0, "listings": 0} | {kind: 2}}
        changes = {"photos": no_changes(), "listings": no_changes()} | {kind: no_changes(changed_now)}
        assert builds.Published(changed.full, report).is_outgrown(changes, rows, settings) is outgrown


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
    monkeypatch.setattr(ranker_fit, "JUDGED_LISTINGS", 1)
    random_change(data_dir, np.random.default_rng(2))
    assert queries_of("--full") == fitted  # kept, as the models are the same


def test_a_marketplace_brings_synonyms_of_its_own(demo_dir, tmp_path, capsys):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_dir, data_dir, ignore=shutil.ignore_patterns("raw", "tensorboard", "features"))
    name = reading.read_csv(data_dir / "tabular" / "products.csv")["name"][0]
    word = max(name.split(), key=len)

    def answers() -> list[dict]:
        opened = Recommender(generations.current_generation(data_dir / "index"))
        return opened.search(opened.typed("qwxzzy"), 3).results

    assert answers() == []
    (data_dir / "synonyms.csv").write_bytes(f"qwxzzy,{word}\r\n\r\n".encode("utf-8-sig"))
    assert build_index.main(["--data", str(data_dir)]) == 0
    found = answers()
    assert found and all(f"similar word: {word}" in hit["reasons"] for hit in found)
    capsys.readouterr()
    assert build_index.main(["--data", str(data_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    for content, error in (
        (b"sofa,settee\ncouch;divan\n", ' line 2 holds "couch;divan" alone: add what means the same, after a comma'),
        ("canap\u00e9,sofa".encode("latin-1"), " is no CSV file in UTF-8: save it as one"),
    ):
        (data_dir / "synonyms.csv").write_bytes(content)
        assert build_index.main(["--data", str(data_dir)]) == 1
        assert capsys.readouterr().err == f"error: {data_dir / 'synonyms.csv'}{error}\n"
    assert answers() == found
