"""Cleaned photos decoded by several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marketplace.cleaning import photos, shared_pixels
from marketplace.files.stages import StageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images_dir(tmp_path):
    for number in range(90):
        Image.effect_noise((16, 16), 50 + number).convert("RGB").save(tmp_path / f"{number}.jpg")
    return tmp_path


def batches_of(count: int, size: int) -> list[list[str]]:
    ids = [str(number) for number in range(count)]
    return [ids[start : start + size] for start in range(0, count, size)]


@pytest.mark.parametrize("size", [1, 7, 40, 90, 200])
def test_every_batch_is_decoded_in_order_whatever_its_size(images_dir, size):
    batches = batches_of(90, size)
    copies = list(shared_pixels.map_batches(np.copy, images_dir, batches, 16, 2))
    assert [len(copy) for copy in copies] == [len(batch) for batch in batches]
    expected = [photos.load(images_dir, image_id, photos.pixels) for batch in batches for image_id in batch]
    np.testing.assert_array_equal(np.concatenate(copies), expected)


def test_of_no_batches_comes_nothing(images_dir):
    assert list(shared_pixels.map_batches(np.copy, images_dir, [], 16, 2)) == []


def test_a_missing_photo_is_one_sentence(images_dir):
    (images_dir / "60.jpg").unlink()
    with pytest.raises(StageError, match=f"^{images_dir}/60.jpg is missing or damaged: run python clean_images.py again$"):
        list(shared_pixels.map_batches(np.copy, images_dir, batches_of(90, 20), 16, 2))


def test_the_processes_end_with_one_that_is_killed(images_dir):
    code = (
        "import multiprocessing, sys; from pathlib import Path; from marketplace.cleaning import shared_pixels\n"
        "found = shared_pixels.map_batches(len, Path(sys.argv[1]), [['0'], ['1'], ['2']], 16, 3)\n"
        "next(found); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, images_dir], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    assert process.stdout.read() == b""  # ends when the last process that holds it does
    process.wait()
