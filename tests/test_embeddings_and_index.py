import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

import api
import build_index
import dataset
import evaluate
import extract_embeddings
import train
from marketplace.files import atomic, generations, locks, reading, stages
from marketplace.models import photo_model
from marketplace.retrieval import builds
from tests.conftest import TRAIN_FLAGS, run_stages, stamp


@pytest.fixture
def copied(demo_dir, tmp_path):
    """A copy of the finished pipeline to be damaged."""
    shutil.copytree(demo_dir, tmp_path / "data", ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return tmp_path / "data"


def fails(main, arguments, capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_the_published_generation_holds_all_that_serving_needs(demo_dir):
    generation = generations.current_generation(demo_dir / "index")
    report = reading.read_json(generation / "report.json")
    assert report["index"]["recall_at_10"] == 1.0 and report["index"]["kind"] == "Flat"
    assert {name: report["files"][name] for name in photo_model.FILES} == stages.digests(demo_dir / "model", *photo_model.FILES)
    assert report["files"] == stages.digests(
        generation, *(name for name in generations.files_of(generation) if name != "report.json")
    )
    assert report["index"]["bytes_per_vector"] == pytest.approx(4 * report["dimension"], rel=0.1)
    names = {"index.faiss", "vectors.npy", "text.faiss", "catalogue.sqlite", "ranker.json", *photo_model.FILES}
    assert names <= {path.name for path in generation.iterdir()}


def test_a_rerun_changes_nothing_and_another_kind_makes_a_new_generation(copied, capsys):
    first = generations.current_generation(copied / "index").name
    assert build_index.main(["--data", str(copied)]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    assert build_index.main(["--data", str(copied), "--kind", "ivf"]) == 0
    assert generations.current_generation(copied / "index").name != first
    assert (copied / "index" / first).is_dir()  # for a reader that still has it open


def test_a_dictionary_of_your_own_can_be_indexed(copied, tmp_path, capsys):
    image_ids = reading.read_json(copied / "embeddings" / "image_ids.json")[:20]
    generator = np.random.default_rng(0)
    dictionary = {name: generator.normal(size=13).tolist() for name in [*image_ids, "photo-of-nobody"]}
    (tmp_path / "own.json").write_text(json.dumps(dictionary))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["photos"], summary["dimension"], summary["photos_without_listing"]) == (21, 13, 1)
    vectors = np.load(generations.current_generation(copied / "index") / "vectors.npy")
    expected = np.array(list(dictionary.values()))
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_a_dictionary_may_write_ids_in_capitals(copied, tmp_path, capsys):
    image_ids = reading.read_json(copied / "embeddings" / "image_ids.json")
    (tmp_path / "own.json").write_text(json.dumps({name.upper(): [1.0, row] for row, name in enumerate(image_ids)}))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["photos"], summary["photos_without_listing"]) == (len(image_ids), 0)
    (tmp_path / "own.json").write_text(json.dumps({image_ids[0]: [1.0], image_ids[0].upper(): [1.0]}))
    assert fails(build_index.main, ["--data", str(copied), "--embeddings", str(tmp_path / "own.json")], capsys) == (
        f"error: --embeddings {tmp_path / 'own.json'} holds an id twice, in capitals and not: leave one of them out\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no embeddings: give a file of the form {image id: [floats]}"),
        ('{"a": [1, 2], "b": [1]}', "holds lists that are not numbers or differ in length: embed them again"),
        ('{"a": ["x"]}', "holds lists that are not numbers or differ in length: embed them again"),
        ('{"a": [0, 0]}', "must hold lists of finite numbers, not all zero: embed them again"),
        ('{"a": 3}', "must hold lists of finite numbers, not all zero: embed them again"),
    ],
)
def test_a_file_that_is_no_dictionary_of_embeddings_is_one_sentence(copied, tmp_path, capsys, content, message):
    path = tmp_path / "own.json"
    path.write_text(content)
    assert (
        fails(build_index.main, ["--data", str(copied), "--embeddings", str(path)], capsys)
        == f"error: --embeddings {path} {message}\n"
    )


def test_a_dictionary_cut_short_is_one_sentence(copied, tmp_path, capsys):
    (tmp_path / "own.json").write_text('{"a": [1.0, 2')
    error = fails(build_index.main, ["--data", str(copied), "--embeddings", str(tmp_path / "own.json")], capsys)
    assert error.startswith(f"error: --embeddings {tmp_path / 'own.json'} is not valid JSON (") and error.count("\n") == 1


def test_an_index_of_vectors_of_your_own_answers_for_listings_but_not_for_photos(copied, tmp_path):
    ids = reading.read_json(copied / "embeddings" / "image_ids.json")
    vectors = np.random.default_rng(0).normal(size=(len(ids), 13))
    (tmp_path / "own.json").write_text(json.dumps(dict(zip(ids, vectors.tolist(), strict=True))))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    product_id = reading.read_csv(copied / "dataset" / "training_data.csv")["product_id"][0]
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert client.get("/healthcheck").json()["dimension"] == 13
        assert len(client.get(f"/products/{product_id}/similar").json()["results"]) == 10
        photo = (copied / "images" / f"{ids[0]}.jpg").read_bytes()
        refused = client.post("/predict/similar_images", files={"image": photo})
        assert (refused.status_code, refused.json()["detail"]) == (
            503,
            "the index holds vectors that no photo can be compared with: search by words or by listing",
        )


def test_a_model_that_is_overwritten_in_place_changes_no_generation(copied):
    assert build_index.main(["--data", str(copied), "--full"]) == 0
    published = builds.Published.current(copied / "index")
    assert published.is_whole()
    for path in (copied / "model").iterdir():
        if path.name != locks.LOCK:
            path.write_bytes(b"copied over it")
    assert published.is_whole()


def test_new_vectors_make_a_new_generation(copied, capsys):
    assert build_index.main(["--data", str(copied), "--kind", "flat"]) == 0
    before = generations.current_generation(copied / "index")
    assert (before / "vectors.npy").samefile(copied / "embeddings" / "vectors.npy")  # linked, not copied
    assert (before / "vectors.npy").stat().st_mode & 0o222 == 0  # and not to be written through either name
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    atomic.write_array(copied / "embeddings" / "vectors.npy", np.roll(vectors, 1, axis=1))
    stamp(copied, "embeddings")
    assert build_index.main(["--data", str(copied), "--kind", "flat"]) == 0
    after = generations.current_generation(copied / "index")
    assert after != before
    np.testing.assert_array_equal(np.load(before / "vectors.npy"), vectors)
    np.testing.assert_array_equal(np.load(after / "vectors.npy"), np.roll(vectors, 1, axis=1))


@pytest.mark.parametrize("main", [extract_embeddings.main, build_index.main, lambda a: train.main([*a, *TRAIN_FLAGS])])
def test_a_table_cleaned_anew_asks_for_the_dataset_before_anything_is_made_of_it(copied, capsys, main):
    labels = copied / "tabular" / "labels.json"
    labels.write_text(labels.read_text().replace("Appliances", "Machines"))
    stamp(copied, "tabular")
    expected = f"error: {copied / 'dataset'} was made from another tabular/labels.json: run python dataset.py again\n"
    assert fails(main, ["--data", str(copied)], capsys) == expected


def test_another_split_asks_for_another_training(copied, capsys):
    assert dataset.main(["--data", str(copied), "--seed", "5"]) == 0
    expected = f"error: {copied / 'model'} was made from another dataset/settings.json: run python train.py again\n"
    assert fails(extract_embeddings.main, ["--data", str(copied)], capsys) == expected


def test_a_listing_and_a_photo_more_need_no_new_training(copied, demo_dir, tmp_path):
    shutil.copytree(demo_dir / "raw", copied / "raw")
    new_product, new_image = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-00000000000A"
    with open(copied / "raw" / "Products.csv", "a") as file:
        file.write(
            f'9999,{new_product},Brass trumpet,"Musical Instruments & DJ Equipment",A trumpet,£80.00,"Hove, East Sussex"\n'
        )
    with open(copied / "raw" / "Images.csv", "a") as file:
        file.write(f"9999,{new_image},{new_product}\n")
    Image.effect_noise((90, 60), 60).save(copied / "raw" / "images" / f"{new_image}.jpg", "JPEG")
    model_before = stages.digests(copied / "model", *photo_model.FILES)
    run_stages(copied, ["tabular", "images", "dataset", "embeddings", "index"])
    assert stages.digests(copied / "model", *photo_model.FILES) == model_before
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert client.get(f"/products/{new_product}").json()["photos"] == [
            {
                "image_id": new_image.lower(),
                "photo_url": f"/images/{new_image.lower()}.jpg",
                "display_url": f"/images/{new_image.lower()}/display",
                "width": 90,
                "height": 60,
            }
        ]
        assert client.get("/search", params={"q": "trumpet", "k": 1}).json()["results"][0]["product_id"] == new_product


def test_neither_a_category_that_is_sold_out_nor_a_new_one_needs_a_new_training(copied, demo_dir, capsys):
    shutil.copytree(demo_dir / "raw", copied / "raw")
    path = copied / "raw" / "Products.csv"
    products = pd.read_csv(path, dtype=str, index_col=0, keep_default_na=False)
    main_categories = products["category"].str.split(" / ").str[0]
    rarest = main_categories.value_counts().index[-1]
    products[main_categories != rarest].to_csv(path)
    run_stages(copied, ["tabular", "images", "dataset", "embeddings", "index"])
    assert rarest not in reading.read_json(copied / "tabular" / "labels.json")["encoder"]
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert rarest not in client.get("/filters").json()["categories"]
        assert client.get("/search", params={"q": products["product_name"].iloc[0]}).json()["results"]
    expected = f"error: {copied / 'model'} was made from another tabular/labels.json: run python train.py again\n"
    assert fails(evaluate.main, ["--data", str(copied)], capsys) == expected
    products["category"] = products["category"].replace(products["category"].iloc[0], "Aardvarks")
    products.to_csv(path)
    capsys.readouterr()
    run_stages(copied, ["tabular", "images", "dataset", "embeddings", "index"])
    assert "categories that the model does not know before another python train.py: Aardvarks\n" in capsys.readouterr().err
    table = reading.read_csv(copied / "tabular" / "products.csv")
    new = table[table["category"] == "Aardvarks"].iloc[0]
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert "Aardvarks" in client.get("/filters").json()["categories"]
        found = client.get("/search", params={"q": new["name"], "category": "Aardvarks"}).json()["results"]
        assert new["product_id"] in {result["product_id"] for result in found}
        assert client.get(f"/products/{new['product_id']}/similar").json()["results"]


def test_a_missing_dictionary_is_one_sentence(copied, capsys):
    expected = "error: --embeddings nowhere.json does not exist: give a JSON file of the form {image id: [floats]}\n"
    assert fails(build_index.main, ["--data", str(copied), "--embeddings", "nowhere.json"], capsys) == expected


def test_embeddings_of_another_model_are_refused(copied, capsys):
    with open(copied / "model" / "image_model.onnx", "ab") as file:
        file.write(b"retrained")
    expected = f"error: {copied / 'model' / 'image_model.onnx'} has been changed: run python train.py again\n"
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected
    stamp(copied, "model")
    expected = (
        f"error: {copied / 'embeddings'} was made from another model/image_model.onnx: run python extract_embeddings.py again\n"
    )
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected


def test_ids_that_do_not_fit_the_vectors_are_refused(copied, capsys):
    path = copied / "embeddings" / "vectors.npy"
    vectors = np.load(path)
    atomic.write_array(path, vectors[1:])
    expected = f"error: {path} has been changed: run python extract_embeddings.py again\n"
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected
    stamp(copied, "embeddings")
    counts = f"vectors of {len(vectors) - 1} photos where the tables have {len(vectors)}"
    expected = f"error: {copied / 'embeddings'} holds {counts}: run python extract_embeddings.py again\n"
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected
    path = copied / "embeddings" / "image_ids.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]))
    expected = f"error: {path} has been changed: run python extract_embeddings.py again\n"
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected


def test_without_the_earlier_stages_each_says_what_to_run(tmp_path, capsys):
    expected = f"error: {tmp_path / 'tabular'} is not finished: run python clean_tabular_data.py first\n"
    for main in (dataset.main, extract_embeddings.main, build_index.main):
        assert fails(main, ["--data", str(tmp_path)], capsys) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (extract_embeddings.main, ["--batch-size", "0"], "argument --batch-size: '0' is not a whole number above 0"),
        (extract_embeddings.main, ["--device", "abacus"], "argument --device: 'abacus' is neither cpu nor cuda"),
        (build_index.main, ["--recall", "2"], "argument --recall: must be above 0 and at most 1, not 2.0"),
    ],
)
def test_values_that_make_no_sense_are_usage_errors(main, flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")
