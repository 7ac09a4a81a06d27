"""The update of what is served: the stages that changed listings need, in one run."""

import importlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageOps
from starlette.testclient import TestClient

import api
import build_index
import clean_images
import clean_tabular_data
import extract_embeddings
import update
from marketplace.cleaning import photo_records, records, redaction, schema, tables
from marketplace.files import cli, locks, reading, stages
from tests.conftest import STAGES, run_stages
from tests.files.asked import sentence_of

NEW = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"]
NEW_PHOTOS = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"]


@pytest.fixture
def shop(demo_dir, tmp_path) -> Path:
    """A copy of the demo marketplace, with its raw files, that may be written to."""
    return shutil.copytree(demo_dir, tmp_path / "data")


@pytest.fixture(autouse=True)
def quiet_nice(monkeypatch):
    monkeypatch.setattr(os, "nice", lambda steps: steps)  # or the other tests would be the nicer


def run_update(data_dir: Path, capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert update.main(["--data", str(data_dir), *flags]) == 0
    return json.loads(capsys.readouterr().out)


def change_raw(data_dir: Path) -> tuple[str, str]:
    """Two listings come, one goes, one is another by now; returns the ids of the latter two."""
    path = data_dir / "raw" / "Products.csv"
    (gone, changed), models = (rows := listings_with_photos(data_dir))["product_id"][:2], rows["image_id"][2:4]
    texts = [record.text for record in tables.open_table(path, schema.EXPORT).records]
    kept = [text for text in texts if not {gone, changed} & set(redaction.UUID.findall(text.lower()))]
    assert len(kept) <= len(texts) - 2
    rest = '"Musical Instruments & DJ Equipment / Brass",Played for a year,£80.00,"Hove, East Sussex"'
    names = {changed: "Brass trumpet", NEW[0]: "Oboe", NEW[1]: "Bassoon"}
    new = [f"{number},{one},{name},{rest}" for number, (one, name) in enumerate(names.items(), 9000)]
    head = path.read_text().splitlines()[0]
    path.write_text("\n".join([head, *kept, *new]) + "\n")
    with open(data_dir / "raw" / "Images.csv", "a") as file:
        file.writelines(f"{9000 + at},{ids[0]},{ids[1]}\n" for at, ids in enumerate(zip(NEW_PHOTOS, NEW, strict=True)))
    for image_id, like in zip(NEW_PHOTOS, models, strict=True):
        with Image.open(data_dir / "images" / f"{like}.jpg") as photo:
            ImageOps.posterize(ImageOps.flip(photo), 3).save(data_dir / "raw" / "images" / f"{image_id}.jpg")
    return gone, changed


def listings_with_photos(data_dir: Path) -> pd.DataFrame:
    return reading.read_csv(data_dir / "dataset" / "training_data.csv").drop_duplicates("product_id", ignore_index=True)


def answers(data_dir: Path, gone: str) -> list:
    """What the API says of every listing, and finds for words of all kinds."""
    products = reading.read_csv(data_dir / "tabular" / "products.csv")
    asked = [f"/products/{one}{what}" for one in products["product_id"] for what in ("", "/similar?k=5")]
    words = ["oboe", "bassoon", "brass trumpet", *products["name"][:8], *products["main_category"].unique()]
    with TestClient(api.create_app(api.Settings(data_dir))) as client:
        found = [client.get(path) for path in [*asked, f"/products/{gone}", "/filters"]]
        found += [client.get("/search", params={"q": text, "k": 20}) for text in words]
        return [[answer.status_code, answer.json()] for answer in found]


def take_scores(answered: list) -> list[float]:
    """The scores of all answers, which are taken out of them."""
    results = [result for _, answer in answered for result in answer.get("results", ())]
    return [score for result in results for score in (result.pop("score"), *result.pop("parts").values())]


def test_an_update_answers_as_a_full_build_does_and_the_next_one_does_nothing(shop, tmp_path, capsys):
    gone, renamed = change_raw(shop)
    before = reading.read_csv(shop / "dataset" / "listings.csv").set_index("product_id")["split"]
    told = run_update(shop, capsys)
    after = reading.read_csv(shop / "dataset" / "listings.csv").set_index("product_id")["split"]
    assert (after[before.index.drop(gone)] == before.drop(gone)).all() and set(after.index) - set(before.index) == set(NEW)
    assert told["updated"] and told["training"] == "not needed"
    assert (told["photos_embedded"], told["listings_embedded"]) == (2, 3)
    assert build_index.Published.current(shop / "index").report["updated"] is not None

    full = shutil.copytree(shop, tmp_path / "full")
    for folder in ("tabular", "images", "embeddings"):
        shutil.rmtree(full / folder)
    run_stages(full, [name for name in STAGES if name not in ("model", "index")])
    assert build_index.main(["--data", str(full), "--full"]) == 0
    assert build_index.Published.current(full / "index").report["updated"] is None
    found, expected = answers(shop, gone), answers(full, gone)
    scores, expected_scores = take_scores(found), take_scores(expected)
    assert found == expected
    assert scores == pytest.approx(expected_scores, abs=0.01)  # words of listings that went count until the next full build
    assert [status for status, _ in found].count(404) == 1
    named = {result["product_id"] for _, answer in found for result in answer.get("results", ())}
    assert {*NEW, renamed} <= named and gone not in named

    times = {path: path.stat().st_mtime_ns for path in shop.rglob("*") if path.is_file()}
    again = run_update(shop, capsys)
    assert not again["updated"] and again["generation"] == told["generation"]
    assert (again["photos_embedded"], again["listings_embedded"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in shop.rglob("*") if path.is_file()} == times


def test_a_stage_that_fails_leaves_what_is_served_and_the_next_update_goes_on(shop, capsys):
    served = (shop / "index" / "current.json").read_bytes()
    change_raw(shop)
    for image_id in NEW_PHOTOS:
        (shop / "raw" / "images" / f"{image_id}.jpg").rename(shop / image_id)
    kept = sorted((shop / "raw" / "images").iterdir())
    for path in kept[: len(kept) // 2]:
        path.rename(shop / path.name)
    assert update.main(["--data", str(shop)]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(f"see whether {shop / 'raw' / 'images'} is whole, or allow it with --max-removed 1")
    )
    assert (shop / "index" / "current.json").read_bytes() == served
    (shop / "tabular" / stages.MANIFEST).unlink()  # as a killed stage leaves it
    for path in shop.glob("*.jpg"):
        path.rename(shop / "raw" / "images" / path.name)
    for image_id in NEW_PHOTOS:
        (shop / image_id).rename(shop / "raw" / "images" / f"{image_id}.jpg")
    assert run_update(shop, capsys)["updated"]


def test_a_second_update_at_once_is_told_so(shop, capsys):
    before = {path: path.stat().st_mtime_ns for path in shop.rglob("*")}
    with locks.hold(shop, exclusive=True):
        before |= {shop / locks.LOCK: (shop / locks.LOCK).stat().st_mtime_ns, shop: shop.stat().st_mtime_ns}
        assert update.main(["--data", str(shop)]) == update.BUSY == 3
        assert {path: path.stat().st_mtime_ns for path in shop.rglob("*")} | {shop: shop.stat().st_mtime_ns} == before
    assert capsys.readouterr().err == f"error: another update is at work in {shop}: wait for its end\n"


def test_without_a_folder_or_a_first_run_an_update_says_what_to_do(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert update.main(["--data", str(nowhere)]) == 1
    assert capsys.readouterr().err == f"error: {nowhere} is no folder: give the stages' one with --data\n"
    assert update.main(["--data", str(tmp_path)]) == 1
    expected = (
        f"error: {tmp_path / 'tabular'} does not say how it was made: run python clean_tabular_data.py first, with the flags "
        "that it shall have every time\n"
    )
    assert capsys.readouterr().err == expected
    with pytest.raises(SystemExit) as end:
        update.main(["--nice", "20"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("error: argument --nice: 20 is above 19\n")


GIVEN = {
    "tabular": ["--products", "a b.csv", "--category-depth", "2", "--schema", "shop.toml"],
    "images": ["--photos", "s3://shop/photos", "--size", "128", "--all-photos"],
    "dataset": ["--seed", "7", "--group-column=-x"],
    "model": ["--backbone", "efficientnet_lite0", "--text-encoder", "none", "--finetune", "last", "--device", "cpu"],
    "embeddings": ["--runtime", "onnx", "--no-json"],
    "index": ["--kind", "flat", "--max-memory", "5000"],
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_stage_gets_the_flags_that_it_last_had(tmp_path, name):
    script = importlib.import_module(stages.STAGES[name].script.removesuffix(".py"))
    args = script.parse_args(["--data", "first", *GIVEN[name]])
    (tmp_path / name).mkdir()
    (tmp_path / name / stages.FLAGS).write_text(json.dumps(cli.flags_of(args, "settings")))
    again = script.parse_args([*stages.last_flags(tmp_path, name), "--data", "first"])
    assert vars(again) == vars(args)


def test_flags_of_one_run_are_not_kept(shop):
    before = {name: stages.last_flags(shop, name) for name in STAGES}
    assert clean_images.main(["--data", str(shop), "--workers", "2", "--full", "--max-removed", "0.5"]) == 0
    assert build_index.main(["--data", str(shop), "--full", "--purge"]) == 0
    assert extract_embeddings.main(["--data", str(shop), "--device", "cpu", "--workers", "2"]) == 0
    assert {name: stages.last_flags(shop, name) for name in STAGES} == before
    assert build_index.main(["--data", str(shop), "--recall", "0.9"]) == 0
    assert stages.last_flags(shop, "index") == ["--kind=auto", "--recall=0.9"]


# When to train.


def training_folder(tmp_path: Path, learned: dict[str, tuple[str, str]], now: dict[str, tuple[str, str]], classes) -> Path:
    """A data folder with what why_train() reads. learned, now: id -> label and split."""
    labels = sorted({label for label, _ in now.values()})
    for folder in ("tabular", "dataset", "model"):
        (tmp_path / folder).mkdir()
    decoder = {str(number): name for number, name in enumerate(labels)}
    (tmp_path / "tabular" / "labels.json").write_text(json.dumps({"decoder": decoder}))
    rows = [(one, labels.index(label), split) for one, (label, split) in now.items()]
    pd.DataFrame(rows, columns=["product_id", "label", "split"]).to_csv(tmp_path / "dataset" / "listings.csv", index=False)
    rows = [(one, label, split) for one, (label, split) in learned.items()]
    pd.DataFrame(rows, columns=["product_id", "label", "split"]).to_csv(tmp_path / "model" / stages.LEARNED, index=False)
    (tmp_path / "model" / "image_model.json").write_text(json.dumps({"classes": classes}))
    return tmp_path


@pytest.mark.parametrize(
    ("boats", "moved", "expected"),
    [
        (0, 0, []),
        (9, 5, []),
        (10, 5, ["10 listings of the new category Boats"]),
        (0, 6, ["6% of the listings have another category or split"]),
        (12, 9, ["12 listings of the new category Boats", "9% of the listings have another category or split"]),
    ],
)
def test_new_categories_and_moved_listings_ask_for_a_training(tmp_path, boats, moved, expected):
    learned = {f"id{number}": ("Beds", "train") for number in range(100)}
    now = learned | {f"id{number}": ("Sofas", "train") if number % 2 else ("Beds", "test") for number in range(moved)}
    now |= {f"boat{number}": ("Boats", "train") for number in range(boats)}
    now |= {f"new{number}": ("Beds", "train") for number in range(300)}  # alone they ask for nothing
    assert update.why_train(training_folder(tmp_path, learned, now, ["Beds", "Sofas"])) == expected


def test_the_model_says_what_it_has_learned_of_every_listing(demo_dir):
    learned = reading.read_csv(demo_dir / "model" / stages.LEARNED).set_index("product_id")
    listings = reading.read_csv(demo_dir / "tabular" / "products.csv").set_index("product_id")
    splits = reading.read_csv(demo_dir / "dataset" / "listings.csv").set_index("product_id")
    assert learned["label"].to_dict() == listings["main_category"].to_dict()
    assert learned["split"].to_dict() == splits["split"].to_dict()
    assert update.why_train(demo_dir) == [] and update.why_unusable(demo_dir) == ""


@pytest.mark.parametrize(
    ("mode", "unusable", "due", "expected", "training"),
    [
        ("when-needed", "", [], "TES", "not needed"),
        ("when-needed", "", ["x", "y"], "TESMES", "done: x; y"),
        ("never", "", ["x"], "TES", "due: x"),
        ("always", "", [], "TESMES", "done"),
        ("when-needed", "u", [], "TMES", "done: u"),
        ("never", "u", [], "TES", "due: u"),
    ],
)
def test_new_listings_are_served_before_a_training_where_they_can_be(
    shop, monkeypatch, capsys, mode, unusable, due, expected, training
):
    ran = []

    def run(self, *names):
        ran.extend("T" if name == "tabular" else name[0].upper() for name in names if name not in ("images", "dataset"))
        self.summaries |= {name: {"generation": "g", "listings": 1, "photos": 1, "unchanged": True} for name in names}

    monkeypatch.setattr(update.Update, "run", run)
    monkeypatch.setattr(update, "why_unusable", lambda _: unusable)
    monkeypatch.setattr(update, "why_train", lambda _: due)
    told = run_update(shop, capsys, "--train", mode)
    assert "".join(ran).replace("I", "S") == expected and told["training"] == training


def test_a_model_of_another_split_cannot_be_used(shop):
    settings = reading.read_json(shop / "dataset" / "settings.json") | {"seed": 5}
    (shop / "dataset" / "settings.json").write_text(json.dumps(settings))
    assert update.why_unusable(shop) == f"{shop / 'model'} was made from another dataset/settings.json: run python train.py again"


# What is not done twice.


def cleaned_anew(data_dir: Path, monkeypatch) -> list[str]:
    """The ids of the records that a run of clean_tabular_data.py does not take from the run before."""
    seen, clean = [], records.ListingCleaner._clean

    def spied(self, texts, extra):
        seen.append(texts["id"])
        return clean(self, texts, extra)

    with monkeypatch.context() as patch:
        patch.setattr(records.ListingCleaner, "_clean", spied)
        assert clean_tabular_data.main(["--data", str(data_dir)]) == 0
    return seen


def test_only_records_that_changed_are_cleaned_again_and_the_files_are_the_same(shop, tmp_path, monkeypatch):
    first = cleaned_anew(shutil.copytree(shop / "raw", tmp_path / "new" / "raw").parent, monkeypatch)
    _, renamed = change_raw(shop)
    anew = cleaned_anew(shop, monkeypatch)
    kept = (shop / "tabular" / clean_tabular_data.KEPT_ROWS).read_bytes().decode("utf-8", "replace")
    plain = {one for one in reading.read_csv(shop / "tabular" / "products.csv")["product_id"] if one in kept}
    assert {renamed, *NEW} <= set(anew) and len(anew) < len(first) / 2
    assert plain.isdisjoint(set(anew) - {renamed, *NEW})
    fresh = shutil.copytree(shop / "raw", tmp_path / "fresh" / "raw").parent
    cleaned_anew(fresh, monkeypatch)
    for name in stages.STAGES["tabular"].writes:
        assert (shop / "tabular" / name).read_bytes() == (fresh / "tabular" / name).read_bytes(), name
    assert clean_tabular_data.main(["--data", str(shop), "--category-depth", "2"]) == 0
    labels = reading.read_json(shop / "tabular" / "labels.json")
    assert labels["depth"] == 2 and any(" / " in name for name in labels["encoder"])


@pytest.mark.parametrize("told", ["", " Call 07700 900123", " Mail ann@example.com", " Posted by Ann in Leeds. 25 February 2022"])
def test_no_digest_is_kept_of_a_record_that_had_something_taken_out(tmp_path, told):
    uuid = "1c58d3f9-8b93-47ea-9415-204fcc2a22e6"
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    heads = ",id,product_name,category,product_description,price,location\n"
    (raw_dir / "Products.csv").write_text(f'{heads}1,{uuid},Oak bed,Home & Garden,"A bed.{told}",£20.00,"Hove, East Sussex"\n')
    (raw_dir / "Images.csv").write_text(",id,product_id\n")
    assert clean_tabular_data.main(["--data", str(tmp_path)]) == 0
    path = tmp_path / "tabular" / clean_tabular_data.KEPT_ROWS
    assert (uuid.encode() in path.read_bytes()) is not bool(told)


def test_a_jpeg_whose_size_and_times_are_the_same_is_only_read_with_full(shop, monkeypatch, capsys):
    monkeypatch.setattr(photo_records, "identity", lambda there: "whatever is there")
    assert clean_images.main(["--data", str(shop), "--workers", "1", "--full"]) == 0
    path = min((shop / "images").glob("*.jpg"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes(9))
    capsys.readouterr()
    assert clean_images.main(["--data", str(shop), "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"]
    assert clean_images.main(["--data", str(shop), "--workers", "1", "--full"]) == 0
    assert json.loads(capsys.readouterr().out)["cleaned"] == 1 and path.read_bytes() == whole


def test_a_file_is_digested_once_while_digests_are_kept_unless_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "file", []
    path.write_bytes(b"one")
    long_ago_ns = path.stat().st_ctime_ns
    monkeypatch.setattr(stages.time, "time_ns", lambda: long_ago_ns + 2 * stages.SETTLED_NS)
    file_digest = stages.hashlib.file_digest
    monkeypatch.setattr(stages.hashlib, "file_digest", lambda *asked: read.append(1) or file_digest(*asked))
    with stages.keep_digests():
        assert stages.digest(path) == stages.digest(path) and len(read) == 1
        path.write_bytes(b"three")
        assert stages.digest(path) == stages.hashlib.sha256(b"three").hexdigest() and len(read) == 2
    stages.digest(path)
    assert len(read) == 3
    assert sentence_of(stages.digest, tmp_path / "gone") == f"{tmp_path / 'gone'} is missing: check the path"


def test_what_changed_just_now_is_digested_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(stages.time, "time_ns", lambda: path.stat().st_ctime_ns + stages.SETTLED_NS // 2)
    with stages.keep_digests():
        stages.digest(path)
        path.write_bytes(b"two")
        os.utime(path)
        assert stages.digest(path) == stages.hashlib.sha256(b"two").hexdigest()
