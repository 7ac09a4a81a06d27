"""moderation.py: every list against what the stages before wrote, counted, paged and read whole alike."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from marketplace.cleaning import listings
from marketplace.files import generations, reading
from marketplace.files.stages import StageError
from marketplace.models import photo_model
from marketplace.models.text_model import TableModels
from marketplace.retrieval import moderation
from marketplace.retrieval.moderation import LISTS, Moderation


@pytest.fixture(scope="module")
def folder(demo_dir) -> Path:
    return generations.current_generation(demo_dir / "index")


@pytest.fixture(scope="module")
def opened(folder) -> Moderation:
    return Moderation(folder)


def whole(opened: Moderation, name: str, reason: str | None = None) -> list[moderation.Entry]:
    return [entry for block in opened.blocks(name, reason, 7) for entry in block]


def test_rejects_are_those_of_the_stages_in_their_order(opened, demo_dir):
    rows = reading.read_csv(demo_dir / "tabular" / "rejected.csv")
    found = [(entry.reason, entry.row, entry.details) for entry in whole(opened, "rejected-rows")]
    assert found == [
        (row.pop("reason"), None, row) for row in rows[["reason", "source", "record", "id", "raw"]].to_dict("records")
    ]
    photos = reading.read_csv(demo_dir / "images" / "photos.csv").query("status == 'rejected'")
    found = [(entry.reason, entry.row, entry.details) for entry in whole(opened, "rejected-photos")]
    assert found and found == [
        (row.reason, None, {"image_id": row.image_id, "source": row.source}) for row in photos.itertuples()
    ]


def test_implausible_prices_are_those_of_the_table(opened, demo_dir):
    products = listings.read_products(demo_dir / "tabular")
    odd = products.index[products["price"].notna() & ~products["price_plausible"]]
    assert len(odd) and [(entry.row, entry.reason) for entry in whole(opened, "implausible-prices")] == [
        (row, "zero" if products["price"][row] == 0 else "unlikely") for row in odd
    ]


def test_duplicates_are_the_groups_that_hold_more_than_one_listing():
    groups = np.array([4, 1, 4, 0, 1, 4, 9])
    found = [(row, number, size) for _, row, number, size in moderation._duplicates(groups)]
    assert found == [(1, 0, 2), (4, 0, 2), (0, 1, 3), (2, 1, 3), (5, 1, 3)]


def test_listings_whose_words_and_photos_are_sure_of_different_categories_are_listed_the_surest_first(demo_dir, folder):
    classes = photo_model.Description.load(folder).classes
    models = TableModels.load(folder)
    ids = reading.read_json(demo_dir / "embeddings" / "image_ids.json")
    vectors = reading.read_array(demo_dir / "embeddings" / "text_vectors.npy")
    by_path = models.path_probabilities(np.asarray(vectors))
    own = np.array([classes.index(path.split(" / ")[0]) for path in models.paths])
    by_words = np.stack([by_path[:, own == label].sum(axis=1) for label in range(len(classes))], axis=1)
    owners = np.arange(len(ids)) % 40  # in no order, and with listings that have no photo
    wrong = (by_words[owners].argmax(axis=1) + 1) % len(classes)
    sure = np.linspace(0.3, 0.95, len(ids), dtype=np.float32)
    probabilities = np.full((len(ids), len(classes)), 0, np.float32)
    probabilities[np.arange(len(ids)), wrong] = sure
    entries = SimpleNamespace(text_vectors=vectors, image_ids=ids, owners=owners)
    expected = []
    for row in range(40):
        photo, words = probabilities[owners == row].mean(axis=0), by_words[row]
        if min(photo.max(), words.max()) >= 0.5 and vectors[row].any():
            expected.append((min(float(photo.max()), float(words.max())), row, classes[words.argmax()], classes[photo.argmax()]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moderation, "BLOCK_ROWS", 16)
        patch.setattr(moderation.reading, "read_array", lambda path: probabilities)
        found = moderation._disagreements(demo_dir, folder, entries)
    assert expected and [(row, words, photo) for _, row, words, _, photo, _ in found] == [
        (row, words, photo) for _, row, words, photo in sorted(expected, key=lambda entry: (-round(entry[0], 4), entry[1]))
    ]


@pytest.mark.parametrize("name", LISTS)
def test_pages_and_reasons_are_parts_of_the_whole_list(opened, name):
    entries = whole(opened, name)
    counts = opened.counts()[name]
    assert sum(counts.values()) == len(entries)
    assert [entry.position for entry in entries] == list(range(len(entries)))
    assert [entry for start in range(0, len(entries) + 5, 5) for entry in opened.page(name, None, 5, start)] == entries
    for reason, count in counts.items():
        own = [entry for entry in entries if entry.reason == reason]
        assert len(own) == count and whole(opened, name, reason) == own and opened.page(name, reason, 3, 1) == own[1:4]
    assert opened.page(name, "no such reason", 5, 0) == []


def test_a_generation_without_lists_is_one_sentence(tmp_path):
    with pytest.raises(StageError) as caught:
        Moderation(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'moderation.sqlite'} is missing: run python build_index.py again"
