"""A shop's own table through the whole chain: from 300 made-up listings and a schema to the answers of the API."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

import api
import build_index
import clean_images
import clean_tabular_data
import dataset
import evaluate
import extract_embeddings
import train
from marketplace.cleaning import listings
from marketplace.files import generations, reading
from marketplace.files.stages import StageError

LISTINGS = 300
KINDS = {  # category path -> usual price in euros, adjectives, noun, colour of the photos
    "Home>Beds": (300.0, ["Oak", "Pine", "Steel"], "bed frame", (150, 90, 40)),
    "Home>Lamps": (30.0, ["Brass", "Green", "Tall"], "lamp", (240, 220, 90)),
    "Sport>Bikes": (250.0, ["Road", "City", "Kids"], "bike", (40, 60, 200)),
    "Sport>Balls": (12.0, ["Leather", "Beach", "Tennis"], "ball", (220, 40, 40)),
}
SCHEMA = """
id = "sku"
name = "title"
category = "path"
price = "price"
description = "body"
created = "added"
created_format = "%d.%m.%Y"
photo_pattern = "{id}_{n}.jpg"
separator = ">"
currency = "EUR"
decimal = ","
delimiter = ";"
encoding = "cp1252"
may_be_empty = ["description"]
"""


def euros(amount: float) -> str:
    return f"EUR {amount:,.2f}".translate(str.maketrans(",.", ".,"))


def write_shop(folder: Path, rows: int) -> pd.DataFrame:
    """A table, its schema and its photos; every third listing has no description, and every tenth no photo."""
    drawn = random.Random(0)
    (folder / "raw" / "images").mkdir(parents=True)
    table = []
    for sku in range(1, rows + 1):
        path, (usual, adjectives, noun, colour) = drawn.choice(list(KINDS.items()))
        price = round(usual * drawn.uniform(0.5, 5), 2)
        body = f"Good {noun}, cost {euros(2 * price)} new, number {sku} of our many {noun}s" if sku % 3 else ""
        name = f"{drawn.choice(adjectives)} {noun} {sku}"
        table.append({"sku": sku, "title": name, "path": path, "price": euros(price), "body": body, "added": "27.11.2026"})
        for number in range(1, 1 + (sku % 10 > 0) * drawn.choice((1, 2))):
            noise = np.random.default_rng(2 * sku + number).normal(0, 30, (32, 32, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "raw" / "images" / f"{sku}_{number}.jpg")
    shop = pd.DataFrame(table)
    shop.to_csv(folder / "raw" / "shop.csv", sep=";", index=False, encoding="cp1252")
    (folder / "shop.toml").write_text(SCHEMA)
    return shop


def run_chain(data_dir: Path) -> None:
    # From scratch on a small network, as what is shown here does not hang on what the photo model has learned.
    trained = ["--backbone", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "64"]
    trained += ["--embedding-size", "32", "--text-encoder", "none", "--workers", "0", "--device", "cpu"]
    shops = ["--schema", str(data_dir / "shop.toml"), "--products", str(data_dir / "raw" / "shop.csv")]
    for main, flags in (
        (clean_tabular_data.main, shops),
        (clean_images.main, ["--size", "32", "--workers", "1"]),
        (dataset.main, []),
        (train.main, trained),
        (extract_embeddings.main, ["--device", "cpu"]),
        (build_index.main, []),
        (evaluate.main, ["--max-queries", "20"]),
    ):
        assert main(["--data", str(data_dir), *flags]) == 0, main.__module__


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The shop's folder after the whole chain, its table as it was written, and a client of its API."""
    data_dir = tmp_path_factory.mktemp("shop")
    table = write_shop(data_dir, LISTINGS)
    run_chain(data_dir)
    with TestClient(api.create_app(api.Settings(data_dir))) as client:
        yield SimpleNamespace(data_dir=data_dir, table=table, client=client)


def test_every_listing_and_photo_of_the_shop_is_served(shop):
    files = list((shop.data_dir / "raw" / "images").iterdir())
    assert shop.client.get("/search", params={"k": 1}).json()["total"] == LISTINGS
    assert shop.client.get("/healthcheck").json()["rows"] == len(files)
    row = shop.table.iloc[0]
    answer = shop.client.get("/products/1").json()
    assert (answer["name"], answer["category"], answer["town"]) == (row["title"], row["path"].replace(">", " / "), "")
    assert f"EUR {answer['price']:.2f}".replace(".", ",") == row["price"].replace(".", "") and answer["currency"] == "EUR"
    assert shop.client.get(answer["photos"][0]["photo_url"]).headers["content-type"] == "image/jpeg"
    assert shop.client.get("/products/10").json()["photos"] == []  # it has none


def test_words_photos_and_listings_find_the_shops_listings_in_its_currency(shop):
    typed = shop.client.get("/search", params={"q": "oak bed", "counts": "true"}).json()
    assert typed["results"] and all(result["name"].startswith("Oak bed") for result in typed["results"])
    assert {result["currency"] for result in typed["results"]} == {"EUR"}
    assert {each["currency"] for each in typed["counts"]["prices"]} == {"EUR"}
    like = shop.client.get("/products/1/similar").json()["results"]
    assert like and all(result["currency"] == "EUR" for result in like)
    photo = next((shop.data_dir / "raw" / "images").glob("*_1.jpg"))
    found = shop.client.post("/predict/similar_images", files={"image": photo.read_bytes()}).json()
    assert found["results"][0]["product_id"] == photo.stem.partition("_")[0]
    guess = shop.client.post("/predict/listing", data={"text": "Brass lamp"}).json()["price"]
    assert guess["currency"] == "EUR" and guess["low"] <= guess["median"] <= guess["high"]


def test_the_price_ranges_that_are_counted_hold_the_shops_prices(shop):
    counts = shop.client.get("/search", params={"k": 1, "counts": "true"}).json()["counts"]
    prices = listings.read_products(shop.data_dir / "tabular")["price"]
    assert sum(each["listings"] for each in counts["prices"]) == LISTINGS
    for each in counts["prices"]:
        assert each["listings"] == prices.between(each["min"], each["max"] or np.inf).sum() < LISTINGS / 2


def test_the_figures_are_in_the_shops_currency_and_of_its_own_prices(shop):
    text = (shop.data_dir / "evaluation" / "report.md").read_text()
    products = listings.read_products(shop.data_dir / "tabular")
    plausible = products.loc[products["price_plausible"], "price"]
    assert f"In EUR, on 20 listings from {plausible.min():,.0f} to {plausible.max():,.0f}." in text and "£" not in text
    warnings = reading.read_json(shop.data_dir / "evaluation" / "report.json")["warnings"]
    assert warnings == ["only 20 test listings: a share of them may be off by 22 points, whatever its interval says"]
    assert "**Only 20 test listings: a share of them may be off by 22 points, whatever its interval says.**" in text
    assert any("validation listings" in each for each in reading.read_json(shop.data_dir / "model" / "metrics.json")["warnings"])
    assert reading.read_json(generations.current_generation(shop.data_dir / "index") / "report.json")["warnings"] == []


@pytest.mark.parametrize("priced", [0, 1])
def test_a_shop_whose_prices_cannot_be_meant_is_told_before_anything_is_trained(shop, tmp_path, priced):
    for name in ("tabular", "dataset"):
        (tmp_path / name).mkdir()
        for path in (shop.data_dir / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tabular" / "products.csv"
    products = reading.read_csv(path)
    products["price_plausible"] = ["true"] * priced + ["false"] * (LISTINGS - priced)
    products.to_csv(path, index=False)
    with pytest.raises(StageError, match="^fewer than two different training listings have a plausible price: "):
        train.check_listings(tmp_path)
