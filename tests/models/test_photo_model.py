import base64
import dataclasses
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.models import int8, photo_model


@pytest.fixture
def model_dir(demo_dir, tmp_path):
    """A copy of the small marketplace's photo model, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (photo_model.DESCRIPTION, photo_model.WEIGHTS, photo_model.ONNX, photo_model.INT8):
        shutil.copyfile(demo_dir / "model" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def pixels(demo_dir):
    """(32, 3, S, S) inputs of validation photos."""
    table = reading.read_csv(demo_dir / "dataset" / "training_data.csv").query("split == 'validation'")
    loaded = photo_model.PhotoModel(demo_dir / "model", "onnx")
    return np.stack([loaded.input((demo_dir / "images" / f"{name}.jpg").read_bytes()) for name in table["image_id"][:32]])


def test_on_a_cpu_eight_bits_run_and_give_nearly_the_vectors_of_fp32(demo_dir, pixels):
    quick, exact = (photo_model.PhotoModel(demo_dir / "model", runtime, "cpu") for runtime in ("auto", "onnx"))
    assert (quick.runtime, quick.precision, exact.runtime, exact.precision) == ("onnx", "int8", "onnx", "fp32")
    vectors, expected = quick.run(pixels)[0], exact.run(pixels)[0]
    cosines = (vectors * expected).sum(1)
    assert cosines.mean() >= 0.99 and not np.array_equal(vectors, expected)
    assert exact.description.int8["mean_cosine"] == pytest.approx(cosines.mean(), abs=2e-3)


def test_the_quantised_file_holds_whole_numbers_and_is_much_smaller(demo_dir):
    graph = onnx.load(demo_dir / "model" / photo_model.INT8).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    made = {name: node.op_type for node in graph.node for name in node.output}
    in_float = [node for node in convolutions if made.get(node.input[1]) != "DequantizeLinear"]
    assert in_float == convolutions[: photo_model.Description.load(demo_dir / "model").int8["float_convolutions"]]
    assert (demo_dir / "model" / photo_model.INT8).stat().st_size < (demo_dir / "model" / photo_model.ONNX).stat().st_size / 3


def set_probe(path, vector: np.ndarray) -> None:
    made = onnx.load(path)
    kept = {prop.key: prop.value for prop in made.metadata_props}
    onnx.helper.set_model_props(
        made, kept | {photo_model.PROBE_VECTOR: base64.b64encode(vector.astype("<f4").tobytes()).decode()}
    )
    onnx.save(made, path)


def test_a_processor_that_gives_another_vector_for_the_probe_runs_fp32_and_says_so(model_dir, pixels, caplog):
    size = photo_model.Description.load(model_dir).dimension
    set_probe(model_dir / photo_model.INT8, np.full(size, size**-0.5))
    refused = photo_model.PhotoModel(model_dir, device="cpu")
    assert (refused.runtime, refused.precision) == ("onnx", "fp32")
    run, metadata = photo_model.open_onnx(model_dir / photo_model.INT8)
    cosine = run(refused.input(base64.b64decode(metadata[photo_model.PROBE_PHOTO]))[None])[0].sum() * size**-0.5
    assert caplog.messages == [
        f"{model_dir / photo_model.INT8} gives another vector on this processor than where it was trained (cosine {cosine:.4f}, "
        "at least 0.999 is asked): image_model.onnx is used instead"
    ]
    np.testing.assert_allclose(refused.run(pixels)[0], photo_model.PhotoModel(model_dir, "onnx").run(pixels)[0], atol=1e-6)


@pytest.mark.parametrize("found", [None, {"used": False}])
def test_eight_bits_that_failed_their_check_or_were_never_checked_do_not_run(model_dir, found, caplog):
    dataclasses.replace(photo_model.Description.load(model_dir), int8=found).save(model_dir)
    (model_dir / photo_model.INT8).unlink()
    assert photo_model.PhotoModel(model_dir, device="cpu").precision == "fp32" and not caplog.messages


def test_a_description_of_another_version_says_what_to_run(model_dir):
    path = model_dir / photo_model.DESCRIPTION
    atomic.write_json(path, reading.read_json(path) | {"pooling": "average"})
    with pytest.raises(StageError) as caught:
        photo_model.Description.load(model_dir)
    assert str(caught.value) == f"{path} was written by another version of this program: run python train.py again"


@pytest.mark.parametrize(("runtime", "name"), [("auto", photo_model.INT8), ("onnx", photo_model.ONNX)])
def test_a_missing_network_is_one_sentence(model_dir, runtime, name):
    (model_dir / name).unlink()
    with pytest.raises(StageError) as caught:
        photo_model.PhotoModel(model_dir, runtime, "cpu")
    assert str(caught.value) == f"{model_dir / name} is missing: run python train.py first"


@pytest.mark.parametrize(
    ("variable", "threads", "expected"), [("3", None, 3), ("2,1", None, 2), ("", None, 0), ("many", None, 0), ("3", 1, 1)]
)
def test_the_runtimes_threads_are_openmps_unless_told_otherwise(model_dir, monkeypatch, variable, threads, expected):
    opened = []
    real = onnxruntime.InferenceSession

    def session(path, options, **more):
        opened.append(options.intra_op_num_threads)
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    photo_model.PhotoModel(model_dir, "onnx", "cpu", threads)
    assert opened == [expected]


def unit_rows(rows: int, size: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_check_passes_equal_outputs_and_names_every_figure_that_falls_short():
    vectors, labels = unit_rows(100, 8), np.arange(50) % 2
    logits = np.eye(2)[np.arange(100) % 2]
    logits[:10] = [1, 0]  # five of fifty are wrong: a standard error of 0.0424
    assert int8.check([vectors, logits], [vectors, logits], labels) == {
        "used": True,
        "reason": None,
        "mean_cosine": 1.0,
        "neighbours_kept": 1.0,
        "accuracy": 0.9,
        "fp32_accuracy": 0.9,
        "photos": 50,
    }
    worse = logits.copy()
    worse[10:12] = worse[10:12, ::-1]  # two more: 0.86, within the error
    assert int8.check([vectors, logits], [vectors, worse], labels)["used"]
    worse[12] = worse[12, ::-1]
    report = int8.check([vectors, logits], [-vectors, worse], labels)
    kept = int8.neighbours_kept(vectors, -vectors, 50)
    assert kept == 1.0  # cosines between them are the same
    assert (report["used"], report["reason"]) == (
        False,
        "fp32 is used on CPUs, not 8 bits: on held-out photos the mean cosine to fp32 is -1.0000, at least 0.9900 is asked "
        "and the accuracy is 0.8400, at least 0.8576 is asked",
    )


def test_neighbours_kept_is_what_a_plain_count_gives():
    exact = unit_rows(40, 6)
    other = exact + 0.3 * unit_rows(41, 6)[1:]
    shares = []
    for row in range(25):
        nearest = [
            sorted((i for i in range(40) if i != row), key=lambda i, rows=rows: -rows[row] @ rows[i])[:10]
            for rows in (exact, other)
        ]
        shares.append(len(set(nearest[0]) & set(nearest[1])) / 10)
    assert int8.neighbours_kept(exact, other, 25) == pytest.approx(np.mean(shares))
    assert 0.1 < np.mean(shares) < 0.99


def test_equal_training_gives_an_equal_file_whatever_ran_before(demo_dir, model_dir):
    tables = [reading.read_csv(demo_dir / "dataset" / "training_data.csv") for _ in range(2)]
    tables = [
        table[table["split"] == name].astype({"label": int}) for table, name in zip(tables, ("train", "validation"), strict=True)
    ]
    made = (model_dir / photo_model.INT8).read_bytes()
    (model_dir / photo_model.INT8).unlink()
    report = int8.export(model_dir, demo_dir / "images", *tables, seed=0)
    assert report == photo_model.Description.load(demo_dir / "model").int8
    assert (model_dir / photo_model.INT8).read_bytes() == made


def test_with_two_photos_there_still_is_a_file_and_a_verdict(demo_dir, model_dir):
    table = reading.read_csv(demo_dir / "dataset" / "training_data.csv").astype({"label": int})
    report = int8.export(model_dir, demo_dir / "images", table[:1], table[5:6], seed=0)
    assert report["photos"] == 1 and report["neighbours_kept"] == 1.0
    assert photo_model.open_onnx(model_dir / photo_model.INT8)[1].keys() == {photo_model.PROBE_PHOTO, photo_model.PROBE_VECTOR}


def test_a_network_whose_layers_hardly_vary_gets_a_file_and_a_verdict_too(demo_dir, model_dir):
    network = onnx.load(model_dir / photo_model.ONNX)
    weights, biases = zip(*(node.input[1:3] for node in network.graph.node if node.op_type == "Conv"), strict=True)
    for tensor in network.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1e-7), tensor.name))
        elif tensor.name in biases:  # the outputs are 0.7, but for their last bits
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, 0.7), tensor.name))
    onnx.save(network, model_dir / photo_model.ONNX)
    table = reading.read_csv(demo_dir / "dataset" / "training_data.csv").astype({"label": int})
    report = int8.export(model_dir, demo_dir / "images", table[:8], table[8:16], seed=0)
    assert report["photos"] == 8
    assert photo_model.open_onnx(model_dir / photo_model.INT8)[1].keys() == {photo_model.PROBE_PHOTO, photo_model.PROBE_VECTOR}


# Photos of many requests, together


class Held:
    """A run that does not end before it is let; failing for batches of more than `most`."""

    def __init__(self, most: int = 100):
        self.most, self.sizes, self.threads = most, [], set()
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self, batch):
        self.entered.set()
        assert self.release.wait(60)
        self.sizes.append(len(batch))
        self.threads.add(threading.get_ident())
        if len(batch) > self.most:
            raise ValueError("out of memory")
        return batch[:, 0] * 2, batch[:, 0] + 1


def ask_together(held: Held, items: int) -> tuple[photo_model.Gathered, list]:
    """What it gives for items 0, 1, ..., asked by a thread each while the run of the first one is held up."""
    gathered = photo_model.Gathered(held)
    with ThreadPoolExecutor(items) as pool:
        asked = [pool.submit(gathered, np.array([0]))]
        assert held.entered.wait(60)
        asked += [pool.submit(gathered, np.array([item])) for item in range(1, items)]
        while len(gathered._waiting) < items - 1:
            assert not asked[0].done()
        held.release.set()
    return gathered, asked


def test_what_arrives_while_a_batch_runs_goes_together_into_the_next():
    held = Held()
    _, asked = ask_together(held, 9)
    assert [future.result() for future in asked] == [(2 * item, item + 1) for item in range(9)]
    assert held.sizes == [1, 8]


def test_no_batch_is_larger_than_it_may_be(monkeypatch):
    monkeypatch.setattr(photo_model, "GATHERED", 4)
    held = Held()
    _, asked = ask_together(held, 8)
    assert [future.result() for future in asked] == [(2 * item, item + 1) for item in range(8)]
    assert held.sizes == [1, 4, 4]


@pytest.mark.parametrize("waiting", [3, 5, 6, 11])
def test_a_batch_is_filled_up_to_a_power_of_two_and_all_run_in_one_thread(waiting):
    held = Held()
    _, asked = ask_together(held, waiting + 1)
    assert [future.result() for future in asked] == [(2 * item, item + 1) for item in range(waiting + 1)]
    assert held.sizes == [1, 16 if waiting > 8 else 8 if waiting > 4 else 4]
    assert len(held.threads) == 1


def test_each_of_a_batch_that_fails_is_told_why_and_the_next_one_runs():
    gathered, (first, *others) = ask_together(Held(most=1), 4)
    assert first.result() == (0, 1)
    assert [str(future.exception()) for future in others] == ["out of memory"] * 3
    assert gathered(np.array([7])) == (14, 8)


@pytest.mark.parametrize("kept", [0, 1000, 0.5, 0.999])
def test_a_network_cut_short_is_one_sentence(kept, model_dir):
    path = model_dir / photo_model.ONNX
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(StageError, match=f"^{path} is damaged: delete it and run python train.py again$"):
        photo_model.PhotoModel(model_dir, "onnx")


def test_a_gpu_gets_a_photo_as_it_is_and_gives_nearly_the_vectors_of_fp32(demo_dir):
    served = photo_model.PhotoModel(demo_dir / "model", "torch", "cpu:0")  # a CPU by another name than the slow way's
    exact = photo_model.PhotoModel(demo_dir / "model", "onnx", "cpu")
    jpegs = [path.read_bytes() for path in sorted((demo_dir / "images").glob("*.jpg"))[:8]]
    inputs = [served.input(jpeg) for jpeg in jpegs]
    assert served.precision == "bf16" and {(each.dtype.name, each.shape) for each in inputs} == {("uint8", (256, 256, 3))}
    vectors, _ = served.run(np.stack(inputs))
    expected, _ = exact.run(np.stack([exact.input(jpeg) for jpeg in jpegs]))
    assert (vectors * expected).sum(1).mean() > 0.99  # so few photos make a network that 8 bits of mantissa tell on
    np.testing.assert_allclose(served.run_one(inputs[0])[0], vectors[0], atol=1e-2)
    resized_by_torch, _ = photo_model.PhotoModel(demo_dir / "model", "torch", "cpu").run(np.stack(inputs))
    assert (resized_by_torch * expected).sum(1).min() > 0.999


@pytest.mark.parametrize("sign", ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", None])
def test_a_gpu_is_asked_for_where_any_sign_of_its_driver_is(monkeypatch, sign):
    import torch

    monkeypatch.setattr(photo_model.os.path, "exists", lambda path: path == sign)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert photo_model._choose_runtime("auto", None) == ("torch" if sign else "onnx")
