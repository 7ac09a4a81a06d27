"""How often the best answer to a test photo is of its own category, over HTTP, beside a colour histogram's.

Reads   data/demo/raw/images/ (the photos as a user has them), data/demo/dataset/, data/demo/images/, and the API at --url
Run     python demo/answer_quality.py --data data/demo --url http://127.0.0.1:8080
"""

import argparse
import json
import sys
from pathlib import Path

import httpx2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from marketplace.cleaning import photos
from marketplace.files import reading

BINS = 8  # a colour channel
MAX_K = 100  # results the API gives at most


def read_photos(data_dir: Path) -> pd.DataFrame:
    """Every photo of the catalogue with its listing's title, its cluster, its split, and the name of its label."""
    table = reading.read_csv(data_dir / "dataset" / "training_data.csv")
    titles = reading.read_csv(data_dir / "tabular" / "products.csv").set_index("product_id")["name"]
    names = reading.read_json(data_dir / "tabular" / "labels.json")["decoder"]
    return table.assign(category=table["label"].map(names), title=table["product_id"].map(titles))


def answer_is_right(client: httpx2.Client, photo_path: Path, photo: pd.Series, own_cluster: set[str], text: str) -> bool:
    """Whether the best listing outside the photo's own cluster (its listing and its duplicates) is of the photo's category."""
    form = {"k": str(min(len(own_cluster) + 1, MAX_K)), "text": text}
    response = client.post("/predict/similar_images", files={"image": photo_path.read_bytes()}, data=form)
    response.raise_for_status()
    best = next((result for result in response.json()["results"] if result["product_id"] not in own_cluster), None)
    if best is None:
        sys.exit(f"error: the {MAX_K} best answers to {photo_path.name} are all of its own cluster: this cannot be measured")
    # A label is the start of a category's path: as many levels as --category-depth said.
    return f"{best['category']} / ".startswith(f"{photo['category']} / ")


def histogram(jpeg: bytes) -> np.ndarray:
    levels = photos.pixels(jpeg).reshape(-1, 3) // (256 // BINS)
    counts = np.bincount(levels @ [BINS * BINS, BINS, 1], minlength=BINS**3)
    return counts / counts.sum()


def histogram_accuracy(table: pd.DataFrame, images_dir: Path) -> float:
    """The same measure for the nearest neighbour by histogram intersection (Swain and Ballard 1991)."""
    histograms = np.stack([histogram((images_dir / f"{image_id}.jpg").read_bytes()) for image_id in table["image_id"]])
    clusters, categories = table["cluster"].to_numpy(), table["category"].to_numpy()
    right = []
    for row in np.flatnonzero(table["split"] == "test"):
        alike = np.minimum(histograms, histograms[row]).sum(axis=1)
        alike[clusters == clusters[row]] = -1
        right.append(categories[alike.argmax()] == categories[row])
    return float(np.mean(right))


def show(results: list[dict]) -> None:
    for place, result in enumerate(results, 1):
        parts = ", ".join(f"{kind} {value:.2f}" for kind, value in result["parts"].items())
        price = "no price" if result["price"] is None else f"£{result['price']:,.2f}"
        print(f"{place}. {result['score']:.2f} ({parts})  {result['name']}  {price}  {result['category']}  {result['town']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the API answers (default: %(default)s)")
    parser.add_argument("--example", action="store_true", help="only print the path of one test photo")
    parser.add_argument("--show", action="store_true", help="only print an answer of the API, read from stdin, line by line")
    args = parser.parse_args()
    if args.show:
        show(json.load(sys.stdin)["results"])
        return 0
    table = read_photos(args.data)
    tests = table[table["split"] == "test"]
    raw_path = {image_id: args.data / "raw" / "images" / f"{image_id}.jpg" for image_id in tests["image_id"]}
    if args.example:
        print(raw_path[tests["image_id"].min()])
        return 0
    listings_of = {cluster: set(part["product_id"]) for cluster, part in table.groupby("cluster")}
    shares = {}
    with httpx2.Client(base_url=args.url, timeout=60) as client:
        for name, with_title in (("photo alone", False), ("photo and title", True)):
            right = []
            for _, photo in tests.iterrows():
                own_cluster, text = listings_of[photo["cluster"]], photo["title"] if with_title else ""
                right.append(answer_is_right(client, raw_path[photo["image_id"]], photo, own_cluster, text))
            shares[name] = float(np.mean(right))
    shares["nearest by colour histogram"] = histogram_accuracy(table, args.data / "images")
    print(f"Of {len(tests)} test photos, those whose best answer is of their own category, their own listing left out:")
    for name, share in shares.items():
        print(f"{share:8.3f}  {name}")
    print(json.dumps({"photos": len(tests)} | {name.replace(" ", "_"): round(share, 4) for name, share in shares.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
