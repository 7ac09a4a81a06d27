"""When a price range says something: how far its median guess errs by the range's width, beside always guessing the median price.

Reads   --data: a data folder that went through extract_embeddings.py; its validation listings, which train.py calibrated by
Run     python benchmarks/price_ranges.py --data path/to/data
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from marketplace.cleaning import listings
from marketplace.files import reading
from marketplace.models import price_model, text_model
from marketplace.models.text_encoder import TextEncoder

SHARES = (0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 9)  # of the width of all prices' range


def read_validation(data_dir: Path, encoder: TextEncoder | None) -> tuple[dict[str, price_model.Evidence], np.ndarray]:
    """What is known of the validation listings with a plausible price, by what a seller gives, and their log10 prices."""
    table = listings.read_products(data_dir / "tabular")
    split = reading.read_csv(data_dir / "dataset" / "listings.csv").set_index("product_id")["split"]
    table = table[(table["product_id"].map(split) == "validation") & table["price_plausible"]]
    owners = reading.read_csv(data_dir / "dataset" / "training_data.csv")["product_id"].to_numpy()
    vectors = pd.DataFrame(np.asarray(reading.read_array(data_dir / "embeddings" / "vectors.npy"))).groupby(owners).mean()
    own, texts = vectors.reindex(table["product_id"]).to_numpy(np.float32), listings.texts(table)
    meanings = None if encoder is None else encoder.encode(texts)
    evidence = {
        "words and photo": price_model.Evidence(texts, vectors=own, meanings=meanings),
        "photo alone": price_model.Evidence([""] * len(texts), vectors=own),
    }
    return evidence, np.log10(table["price"].to_numpy())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    encoder = TextEncoder.load(args.data / "model")
    model = price_model.PriceModel.load(args.data / "model", text_model.TableModels.load(args.data / "model", encoder))
    evidence, log_prices = read_validation(args.data, encoder)
    cheap, median, dear = np.quantile(model.first.neighbour_prices, [0.1, 0.5, 0.9])
    figures = {"listings": len(log_prices)}
    for name, given in evidence.items():
        low, guess, high = model.quantiles(given).T
        share, errors, plain = (high - low) / (dear - cheap), np.abs(guess - log_prices), np.abs(median - log_prices)
        print(f"\n{name}: width as a share, listings, error over that of the median price", file=sys.stderr)
        for start, stop in zip(SHARES, SHARES[1:], strict=False):
            rows = (share > start) & (share <= stop)
            if rows.any():
                print(
                    f"{start:5.1f} to {stop:.1f} {rows.sum():6d} {errors[rows].sum() / plain[rows].sum():6.2f}", file=sys.stderr
                )
        told = share <= price_model.MOST_INFORMATIVE
        figures[f"{name}: informative"] = round(float(told.mean()), 3)
        for kind, rows in (("informative", told), ("not informative", ~told)):
            if rows.any():
                figures[f"{name}: error where {kind}"] = round(float(errors[rows].sum() / plain[rows].sum()), 3)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
