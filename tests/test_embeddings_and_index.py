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
from marketplace import model, storage
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


def test_every_kept_photo_and_every_listing_has_a_unit_vector(demo_dir):
    folder = demo_dir / "embeddings"
    vectors, texts = np.load(folder / "vectors.npy"), np.load(folder / "text_vectors.npy")
    training = storage.read_csv(demo_dir / "dataset" / "training_data.csv")
    products = storage.read_csv(demo_dir / "tabular" / "products.csv")
    assert storage.read_json(folder / "image_ids.json") == training["image_id"].tolist()
    assert storage.read_json(folder / "product_ids.json") == products["product_id"].tolist()
    dimension = model.Description.load(demo_dir / "model").dimension
    assert vectors.shape == (len(training), dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(texts) == len(products)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_the_dictionary_reads_back_as_the_very_same_floats(demo_dir):
    folder = demo_dir / "embeddings"
    dictionary = json.loads((folder / "image_embeddings.json").read_text())
    assert list(dictionary) == storage.read_json(folder / "image_ids.json")
    np.testing.assert_array_equal(np.array(list(dictionary.values()), np.float32), np.load(folder / "vectors.npy"))


def test_vectors_do_not_depend_on_the_batch_a_photo_is_in(demo_dir):
    photo_model = model.PhotoModel(demo_dir / "model", device="cpu")
    vectors, ids = np.load(demo_dir / "embeddings" / "vectors.npy"), storage.read_json(demo_dir / "embeddings" / "image_ids.json")
    for row in (0, 31, 32, len(ids) - 1):
        alone, _ = photo_model.run(photo_model.input((demo_dir / "images" / f"{ids[row]}.jpg").read_bytes())[None])
        assert alone[0] @ vectors[row] > 0.9999


OUTPUTS = [*extract_embeddings.OUTPUTS, extract_embeddings.JSON]


def embed(data_dir, capsys, *more) -> dict:
    """The summary of a run that finds no manifest."""
    (data_dir / "embeddings" / "manifest.json").unlink(missing_ok=True)
    capsys.readouterr()
    assert extract_embeddings.main(["--data", str(data_dir), "--device", "cpu", *more]) == 0
    return json.loads(capsys.readouterr().out)


def outputs(data_dir) -> dict[str, bytes]:
    return {name: (data_dir / "embeddings" / name).read_bytes() for name in OUTPUTS}


def test_a_killed_run_loses_no_whole_shard_and_ends_with_the_bytes_of_an_undisturbed_one(copied, capsys, monkeypatch):
    monkeypatch.setattr(extract_embeddings, "SHARD", 40)
    shutil.rmtree(copied / "embeddings")
    distinct = embed(copied, capsys)["photos_embedded"]
    undisturbed = outputs(copied)
    shutil.rmtree(copied / "embeddings")
    write, written = storage.write_array, []

    def killed(path, array):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_array", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_embeddings.main(["--data", str(copied), "--device", "cpu"])
    assert not (copied / "embeddings" / "manifest.json").exists()
    assert embed(copied, capsys)["photos_embedded"] == distinct - 40
    assert outputs(copied) == undisturbed


def change_photos(data_dir, keep, pixels=()) -> None:
    """Leave the photos of some rows of training_data.csv, and say that those of `pixels` (ids) look otherwise now."""
    table = storage.read_csv(data_dir / "dataset" / "training_data.csv").iloc[keep]
    storage.write_csv(data_dir / "dataset" / "training_data.csv", table)
    known = storage.read_csv(data_dir / "images" / "photos.csv")
    known.loc[known["image_id"].isin(pixels), "sha256"] = "f" * 64
    storage.write_csv(data_dir / "images" / "photos.csv", known)
    manifest = storage.read_manifest(data_dir / "dataset")
    inputs = storage.digests(data_dir, *(name for name in manifest["inputs"] if not name.startswith("--")))
    storage.Stage(data_dir / "dataset", manifest["arguments"], inputs).finish(manifest["counts"], [])


def test_only_new_and_changed_photos_are_embedded_and_removed_ones_drop_out(copied, capsys):
    ids = storage.read_json(copied / "embeddings" / "image_ids.json")
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    assert embed(copied, capsys)["photos_embedded"] == 0
    shutil.copyfile(copied / "images" / f"{ids[0]}.jpg", copied / "images" / f"{ids[7]}.jpg")
    order = [9, 3, 7, *range(20, len(ids))]
    change_photos(copied, order, pixels=[ids[7]])
    summary = embed(copied, capsys)
    assert (summary["photos"], summary["photos_embedded"], summary["photos_reused"]) == (len(order), 1, len(order) - 1)
    expected = vectors[order]
    expected[2] = vectors[0]
    np.testing.assert_array_equal(np.load(copied / "embeddings" / "vectors.npy"), expected)
    assert storage.read_json(copied / "embeddings" / "image_ids.json") == [ids[row] for row in order]


def test_a_shard_that_hardly_anyone_wants_goes_and_its_rows_are_made_again(copied, capsys):
    shard = next((copied / "embeddings").glob("photos-*.npy"))
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    change_photos(copied, [0, 1, 2])
    summary = embed(copied, capsys)
    assert len(np.load(shard)) == summary["photos_embedded"] <= 3
    np.testing.assert_allclose(np.load(copied / "embeddings" / "vectors.npy"), vectors[:3], atol=1e-6)


def test_another_model_or_precision_embeds_every_photo_again(copied, capsys):
    summary = embed(copied, capsys, "--runtime", "onnx")
    assert (summary["precision"], summary["photos_reused"]) == ("fp32", summary["photos"] - summary["photos_embedded"])
    assert summary["photos_embedded"] > 100
    assert len(list((copied / "embeddings").glob("photos-*.npy"))) == 1


def test_no_json_leaves_the_dictionary_out_and_an_old_one_does_not_stay(copied, capsys):
    assert (copied / "embeddings" / "image_embeddings.json").exists()
    embed(copied, capsys, "--no-json")
    assert not (copied / "embeddings" / "image_embeddings.json").exists()
    assert embed(copied, capsys)["photos_embedded"] == 0
    assert (copied / "embeddings" / "image_embeddings.json").exists()


def test_the_published_generation_holds_all_that_serving_needs(demo_dir):
    generation = storage.current_generation(demo_dir / "index")
    report = storage.read_json(generation / "report.json")
    assert report["index"]["recall_at_10"] == 1.0 and report["index"]["kind"] == "Flat"
    assert {name: report["files"][name] for name in model.FILES} == storage.digests(demo_dir / "model", *model.FILES)
    assert report["files"] == storage.digests(
        generation, *(path.name for path in generation.iterdir() if path.name != "report.json")
    )
    assert report["index"]["bytes_per_vector"] == pytest.approx(4 * report["dimension"], rel=0.1)
    names = {"index.faiss", "vectors.npy", "text.faiss", "catalogue.sqlite", "ranker.json", *model.FILES}
    assert names <= {path.name for path in generation.iterdir()}


def test_a_rerun_changes_nothing_and_another_kind_makes_a_new_generation(copied, capsys):
    first = storage.current_generation(copied / "index").name
    assert build_index.main(["--data", str(copied)]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
    assert build_index.main(["--data", str(copied), "--kind", "ivf"]) == 0
    assert storage.current_generation(copied / "index").name != first
    assert (copied / "index" / first).is_dir()  # for a reader that still has it open


def test_a_dictionary_of_your_own_can_be_indexed(copied, tmp_path, capsys):
    known = storage.read_json(copied / "embeddings" / "image_ids.json")[:20]
    generator = np.random.default_rng(0)
    dictionary = {name: generator.normal(size=13).tolist() for name in [*known, "photo-of-nobody"]}
    (tmp_path / "own.json").write_text(json.dumps(dictionary))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["photos"], summary["dimension"], summary["photos_without_listing"]) == (21, 13, 1)
    vectors = np.load(storage.current_generation(copied / "index") / "vectors.npy")
    expected = np.array(list(dictionary.values()))
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_a_dictionary_may_write_ids_in_capitals(copied, tmp_path, capsys):
    known = storage.read_json(copied / "embeddings" / "image_ids.json")
    (tmp_path / "own.json").write_text(json.dumps({name.upper(): [1.0, row] for row, name in enumerate(known)}))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["photos"], summary["photos_without_listing"]) == (len(known), 0)
    (tmp_path / "own.json").write_text(json.dumps({known[0]: [1.0], known[0].upper(): [1.0]}))
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
    ids = storage.read_json(copied / "embeddings" / "image_ids.json")
    vectors = np.random.default_rng(0).normal(size=(len(ids), 13))
    (tmp_path / "own.json").write_text(json.dumps(dict(zip(ids, vectors.tolist(), strict=True))))
    assert build_index.main(["--data", str(copied), "--embeddings", str(tmp_path / "own.json")]) == 0
    product_id = storage.read_csv(copied / "dataset" / "training_data.csv")["product_id"][0]
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert client.get("/healthcheck").json()["dimension"] == 13
        assert len(client.get(f"/products/{product_id}/similar").json()["results"]) == 10
        photo = (copied / "images" / f"{ids[0]}.jpg").read_bytes()
        refused = client.post("/predict/similar_images", files={"image": photo})
        assert (refused.status_code, refused.json()["detail"]) == (
            503,
            "the index holds vectors that no photo can be compared with: search by words or by listing",
        )


def test_new_vectors_make_a_new_generation(copied, capsys):
    before = storage.current_generation(copied / "index").name
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    storage.write_array(copied / "embeddings" / "vectors.npy", np.roll(vectors, 1, axis=1))
    stamp(copied, "embeddings")
    assert build_index.main(["--data", str(copied)]) == 0
    assert storage.current_generation(copied / "index").name != before


@pytest.mark.parametrize("main", [extract_embeddings.main, build_index.main, lambda a: train.main([*a, *TRAIN_FLAGS])])
def test_a_table_cleaned_anew_asks_for_the_dataset_before_anything_is_made_of_it(copied, capsys, main):
    labels = copied / "tabular" / "labels.json"
    labels.write_text(labels.read_text().replace("Appliances", "Machines"))
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
    model_before = storage.digests(copied / "model", *model.FILES)
    run_stages(copied, ["tabular", "images", "dataset", "embeddings", "index"])
    assert storage.digests(copied / "model", *model.FILES) == model_before
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert client.get(f"/products/{new_product}").json()["photos"] == [
            {"image_id": new_image.lower(), "photo_url": f"/images/{new_image.lower()}.jpg"}
        ]
        assert client.get("/search", params={"q": "trumpet", "k": 1}).json()["results"][0]["product_id"] == new_product


def test_a_second_file_of_an_id_changes_no_vector(copied, demo_dir):
    shutil.copytree(demo_dir / "raw", copied / "raw")
    names = sorted(path.name for path in (copied / "raw" / "images").iterdir())
    (copied / "raw" / "images" / "again").mkdir()
    shutil.copyfile(copied / "raw" / "images" / names[5], copied / "raw" / "images" / "again" / names[4])
    before = outputs(copied)
    run_stages(copied, ["images"])
    shutil.rmtree(copied / "embeddings")
    run_stages(copied, ["dataset", "embeddings"])
    assert storage.read_csv(copied / "images" / "photos.csv")["image_id"].duplicated().sum() == 1
    assert outputs(copied) == before


def test_a_category_that_is_sold_out_needs_no_new_training_and_a_new_one_does(copied, demo_dir, capsys):
    shutil.copytree(demo_dir / "raw", copied / "raw")
    path = copied / "raw" / "Products.csv"
    products = pd.read_csv(path, dtype=str, index_col=0, keep_default_na=False)
    main_categories = products["category"].str.split(" / ").str[0]
    rarest = main_categories.value_counts().index[-1]
    products[main_categories != rarest].to_csv(path)
    run_stages(copied, ["tabular", "dataset", "embeddings", "index"])
    assert rarest not in storage.read_json(copied / "tabular" / "labels.json")["encoder"]
    with TestClient(api.create_app(api.Settings(copied))) as client:
        assert rarest not in client.get("/filters").json()["categories"]
        assert client.get("/search", params={"q": products["product_name"].iloc[0]}).json()["results"]
    expected = f"error: {copied / 'model'} was made from another tabular/labels.json: run python train.py again\n"
    assert fails(evaluate.main, ["--data", str(copied)], capsys) == expected
    products["category"] = products["category"].replace(products["category"].iloc[0], "Aardvarks")
    products.to_csv(path)
    run_stages(copied, ["tabular", "dataset"])
    expected = f"error: {copied / 'model'} does not know the category Aardvarks: run python train.py again\n"
    assert fails(extract_embeddings.main, ["--data", str(copied)], capsys) == expected


def test_a_missing_dictionary_is_one_sentence(copied, capsys):
    expected = "error: --embeddings nowhere.json does not exist: give a JSON file of the form {image id: [floats]}\n"
    assert fails(build_index.main, ["--data", str(copied), "--embeddings", "nowhere.json"], capsys) == expected


def test_embeddings_of_another_model_are_refused(copied, capsys):
    with open(copied / "model" / "image_model.onnx", "ab") as file:
        file.write(b"retrained")
    expected = (
        f"error: {copied / 'embeddings'} was made from another model/image_model.onnx: run python extract_embeddings.py again\n"
    )
    assert fails(build_index.main, ["--data", str(copied)], capsys) == expected


def test_ids_that_do_not_fit_the_vectors_are_refused(copied, capsys):
    path = copied / "embeddings" / "vectors.npy"
    vectors = np.load(path)
    storage.write_array(path, vectors[1:])
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


def test_photos_cleaned_otherwise_than_the_models_are_refused(copied, capsys):
    path = copied / "images" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["arguments"]["size"] = 128
    path.write_text(json.dumps(manifest))
    expected = (
        f"error: the photos in {copied / 'images'} were cleaned with other settings than the model's: run python train.py again\n"
    )
    assert fails(extract_embeddings.main, ["--data", str(copied), "--runtime", "torch"], capsys) == expected


def test_a_lost_photo_is_one_sentence(copied, capsys):
    image_id = storage.read_json(copied / "embeddings" / "image_ids.json")[3]
    (copied / "images" / f"{image_id}.jpg").unlink()
    shutil.rmtree(copied / "embeddings")
    expected = f"error: {copied / 'images' / image_id}.jpg is missing or damaged: run python clean_images.py again\n"
    assert fails(extract_embeddings.main, ["--data", str(copied)], capsys) == expected


def test_without_the_earlier_stages_each_says_what_to_run(tmp_path, capsys):
    expected = f"error: {tmp_path / 'dataset'} is not finished: run python dataset.py first\n"
    assert fails(extract_embeddings.main, ["--data", str(tmp_path)], capsys) == expected
    expected = f"error: {tmp_path / 'tabular'} is not finished: run python clean_tabular_data.py first\n"
    assert fails(build_index.main, ["--data", str(tmp_path)], capsys) == expected


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
