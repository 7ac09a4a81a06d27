"""How long each stage took, from the manifests of a data folder whose stages have all just run anew.

Reads   a finished data folder
Run     python benchmarks/stages.py --data data
"""

import argparse
import json
import sys
from pathlib import Path

import results

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from marketplace.files import reading, stages

STAGES = ("tabular", "images", "dataset", "model", "embeddings", "index", "evaluation")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", type=Path, help="a finished data folder (default: %(default)s)")
    args = parser.parse_args()
    figures = {
        "listings": len(reading.read_csv(args.data / "tabular" / "products.csv")),
        "photos": len(reading.read_csv(args.data / "dataset" / "training_data.csv")),
        "seconds": {name: stages.read_manifest(args.data / name)["seconds"] for name in STAGES},
    }
    print(json.dumps(figures))
    results.save("stages", figures, results.command(args.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
