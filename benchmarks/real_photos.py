"""Run the whole pipeline on real photos of second-hand clothes, from raw files to answers over HTTP.

Reads   a folder with images.csv (image, sender_id, label) and images/<image>.jpg: github.com/alexeygrigorev/clothing-dataset
Writes  data/clothing/ (every stage's folder)
Run     python benchmarks/real_photos.py path/to/clothing
"""

import argparse
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
# The same for every listing, and under the 8 words that would join them: the photos alone must do.
NAME = "Second-hand clothing | in London, London | Gumtree"
DESCRIPTION = "Second-hand clothing"
PRICE = "£10.00"


def write_raw(source_dir: Path, raw_dir: Path) -> int:
    """Write images.csv in the raw export's schema, one listing a photo, and link the photos; returns their number."""
    table = pd.read_csv(source_dir / "images.csv", dtype=str, keep_default_na=False)
    products = pd.DataFrame(
        {
            "id": [str(uuid.uuid5(uuid.NAMESPACE_OID, image)) for image in table["image"]],
            "product_name": NAME,
            "category": "Clothes / " + table["label"],
            "product_description": DESCRIPTION,
            "price": PRICE,
            "location": "London, London",
            "sender_id": table["sender_id"],
        }
    )
    raw_dir.mkdir(parents=True, exist_ok=True)
    products.to_csv(raw_dir / "Products.csv", lineterminator="\n")
    pd.DataFrame({"id": table["image"], "product_id": products["id"]}).to_csv(raw_dir / "Images.csv", lineterminator="\n")
    (raw_dir / "images").unlink(missing_ok=True)
    (raw_dir / "images").symlink_to((source_dir / "images").resolve())
    return len(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder with images.csv and images/")
    parser.add_argument("--data", default="data/clothing", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--backbone", default="efficientnet_lite0", help="as in train.py (default: %(default)s)")
    parser.add_argument("--finetune", default="head", help="as in train.py (default: %(default)s)")
    parser.add_argument("--port", default="8090", help="of the API while it is measured (default: %(default)s)")
    args = parser.parse_args()
    print(f"{write_raw(args.source, args.data / 'raw')} photos", file=sys.stderr)
    commands = (
        ["clean_tabular_data.py", "--category-depth", "2"],
        ["clean_images.py"],
        ["dataset.py", "--group-column", "sender_id"],
        ["train.py", "--backbone", args.backbone, "--finetune", args.finetune],
        ["extract_embeddings.py"],
        ["build_index.py"],
    )
    for script, *flags in commands:
        subprocess.run([sys.executable, ROOT / script, "--data", args.data, *flags], check=True)
    environment = os.environ | {"PYTHON": sys.executable, "DATA": str(args.data), "PORT": args.port}
    return subprocess.run(["bash", ROOT / "benchmarks" / "answer.sh"], env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
