import json
import shutil

import numpy as np
import pytest

import extract_embeddings
from marketplace.files import atomic, cli, reading, stages
from marketplace.models import photo_model as model
from tests.conftest import run_stages, stamp

OUTPUTS = [*stages.EMBEDDED, extract_embeddings.JSON]


@pytest.fixture
def copied(demo_dir, tmp_path):
    """A copy of the finished pipeline to be damaged."""
    shutil.copytree(demo_dir, tmp_path / "data", ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return tmp_path / "data"


def fails(main, arguments, capsys) -> str:
    capsys.readouterr()
    assert main(arguments) == 1
    return "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if line.startswith("error: "))


def test_every_kept_photo_and_every_listing_has_a_unit_vector(demo_dir):
    folder = demo_dir / "embeddings"
    vectors, texts = np.load(folder / "vectors.npy"), np.load(folder / "text_vectors.npy")
    training = reading.read_csv(demo_dir / "dataset" / "training_data.csv")
    products = reading.read_csv(demo_dir / "tabular" / "products.csv")
    assert reading.read_json(folder / "image_ids.json") == training["image_id"].tolist()
    dimension = model.Description.load(demo_dir / "model").dimension
    assert vectors.shape == (len(training), dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(texts) == len(products)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_the_dictionary_reads_back_as_the_very_same_floats(demo_dir):
    folder = demo_dir / "embeddings"
    dictionary = json.loads((folder / "image_embeddings.json").read_text())
    assert list(dictionary) == reading.read_json(folder / "image_ids.json")
    np.testing.assert_array_equal(np.array(list(dictionary.values()), np.float32), np.load(folder / "vectors.npy"))


def test_vectors_do_not_depend_on_the_batch_a_photo_is_in(demo_dir):
    photo_model = model.PhotoModel(demo_dir / "model", device="cpu")
    vectors, ids = np.load(demo_dir / "embeddings" / "vectors.npy"), reading.read_json(demo_dir / "embeddings" / "image_ids.json")
    for row in (0, 31, 32, len(ids) - 1):
        alone, _ = photo_model.run(photo_model.input((demo_dir / "images" / f"{ids[row]}.jpg").read_bytes())[None])
        assert alone[0] @ vectors[row] > 0.9999


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
    write, written = atomic.write_bytes, []

    def killed(path, data):
        if written:
            raise KeyboardInterrupt
        if path.suffix == ".npy":
            written.append(path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_embeddings.main(["--data", str(copied), "--device", "cpu"])
    assert not (copied / "embeddings" / "manifest.json").exists()
    assert embed(copied, capsys)["photos_embedded"] == distinct - 40
    assert outputs(copied) == undisturbed


def change_photos(data_dir, keep, pixels=()) -> None:
    """Leave the photos of some rows of training_data.csv, and say that those of `pixels` (ids) look otherwise now."""
    table = reading.read_csv(data_dir / "dataset" / "training_data.csv").iloc[keep]
    atomic.write_csv(data_dir / "dataset" / "training_data.csv", table)
    cleaned = reading.read_csv(data_dir / "images" / "photos.csv")
    cleaned.loc[cleaned["image_id"].isin(pixels), "sha256"] = "f" * 64
    atomic.write_csv(data_dir / "images" / "photos.csv", cleaned)
    stamp(data_dir, "images")
    manifest = stages.read_manifest(data_dir / "dataset")
    inputs = stages.digests(data_dir, *(name for name in manifest["inputs"] if not name.startswith("--")))
    stages.Stage(data_dir, "dataset", manifest["arguments"], inputs).finish(manifest["counts"], manifest["outputs"])


def test_only_new_and_changed_photos_are_embedded_and_removed_ones_drop_out(copied, capsys):
    ids = reading.read_json(copied / "embeddings" / "image_ids.json")
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
    assert reading.read_json(copied / "embeddings" / "image_ids.json") == [ids[row] for row in order]


def test_a_shard_that_hardly_anyone_wants_goes_and_its_rows_are_made_again(copied, capsys):
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    change_photos(copied, [0, 1, 2])
    summary = embed(copied, capsys)
    (shard,) = (copied / "embeddings").glob("photos-*.npy")
    assert len(np.load(shard)) == summary["photos_embedded"] <= 3
    np.testing.assert_allclose(np.load(copied / "embeddings" / "vectors.npy"), vectors[:3], atol=1e-6)


def test_a_kept_row_that_was_damaged_in_place_is_made_again(copied, capsys):
    vectors = np.load(copied / "embeddings" / "vectors.npy")
    (shard,) = (copied / "embeddings").glob("photos-*.npy")
    with open(shard, "r+b") as file:
        file.seek(-200, 2)
        file.write(b"damaged.")
    change_photos(copied, range(1, len(vectors)))
    assert embed(copied, capsys)["photos_reused"] < len(vectors) / 2
    np.testing.assert_allclose(np.load(copied / "embeddings" / "vectors.npy"), vectors[1:], atol=1e-6)


def test_another_model_or_precision_embeds_every_photo_again(copied, capsys):
    summary = embed(copied, capsys, "--runtime", "onnx")
    assert (summary["precision"], summary["photos_reused"]) == ("fp32", summary["photos"] - summary["photos_embedded"])
    assert summary["photos_embedded"] > 100
    assert len(list((copied / "embeddings").glob("photos-*.npy"))) == 1


def test_the_way_of_a_gpu_decodes_apart_and_gives_nearly_the_same_rows_in_the_same_shards(copied, capsys, monkeypatch):
    monkeypatch.setattr(extract_embeddings, "SHARD", 25)  # with batches of 20: the last of each shard is smaller
    for path in (copied / "embeddings").glob("photos-*.npy"):
        path.unlink()
    exact = embed(copied, capsys, "--runtime", "onnx")
    expected = {path.stem.split("-")[2]: np.load(path) for path in (copied / "embeddings").glob("photos-*.npy")}
    (copied / "embeddings" / "manifest.json").unlink()
    flags = ("--device", "cpu:0", "--runtime", "torch", "--batch-size", "20", "--workers", "2")
    monkeypatch.setattr(cli, "device", str)  # takes a CPU by another name than the slow way's
    assert extract_embeddings.main(["--data", str(copied), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == exact | {"runtime": "torch", "precision": "bf16", "seconds": found["seconds"]}
    rows = {path.stem.split("-")[2]: np.load(path) for path in (copied / "embeddings").glob("photos-*.npy")}
    assert rows.keys() == expected.keys()
    for number, shard in rows.items():
        np.testing.assert_array_equal(shard["key"], expected[number]["key"])
        assert (shard["vector"] * expected[number]["vector"]).sum(1).mean() > 0.99  # of other photos 0


def test_no_json_leaves_the_dictionary_out_and_an_old_one_does_not_stay(copied, capsys):
    assert (copied / "embeddings" / "image_embeddings.json").exists()
    embed(copied, capsys, "--no-json")
    assert not (copied / "embeddings" / "image_embeddings.json").exists()
    assert embed(copied, capsys)["photos_embedded"] == 0
    assert (copied / "embeddings" / "image_embeddings.json").exists()


def test_a_second_file_of_an_id_changes_no_vector(copied, demo_dir):
    shutil.copytree(demo_dir / "raw", copied / "raw")
    names = sorted(path.name for path in (copied / "raw" / "images").iterdir())
    (copied / "raw" / "images" / "again").mkdir()
    shutil.copyfile(copied / "raw" / "images" / names[5], copied / "raw" / "images" / "again" / names[4])
    before = outputs(copied)
    run_stages(copied, ["images"])
    shutil.rmtree(copied / "embeddings")
    run_stages(copied, ["dataset", "embeddings"])
    assert reading.read_csv(copied / "images" / "photos.csv")["image_id"].duplicated().sum() == 1
    assert outputs(copied) == before


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
    image_id = reading.read_json(copied / "embeddings" / "image_ids.json")[3]
    (copied / "images" / f"{image_id}.jpg").unlink()
    shutil.rmtree(copied / "embeddings")
    expected = f"error: {copied / 'images' / image_id}.jpg is missing or damaged: run python clean_images.py again\n"
    assert fails(extract_embeddings.main, ["--data", str(copied)], capsys) == expected
