"""Ask the demo's API what the pages show: how often it is right, and some commands with their answers.

Reads   data/demo/ and the API that `make serve` starts over it
Run     python benchmarks/demo_answers.py
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from demo import answer_quality
from marketplace.files import reading

URL = "http://127.0.0.1:8080"
THING = "guitar"  # of what the drawn photos show
WIDTH = 120


def ask(command: str, url: str) -> dict:
    """Run a curl command of the pages, against another address where there is one."""
    words = command.replace(URL, url).replace("curl ", "curl --silent --show-error ", 1)
    return json.loads(subprocess.run(words, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def shortened(answer: dict) -> str:
    """As JSON in lines of the pages' width, broken between entries; of a list the first entry alone, and "..." for the others."""
    cut = {key: [*value[:1], "..."] if isinstance(value, list) and len(value) > 1 else value for key, value in answer.items()}
    text = json.dumps(cut, ensure_ascii=False, separators=(",", ":")).replace('"..."', "...")
    text = re.sub(r',(?=["{[.])', ", ", text.replace(" ", "\0"))  # the only blanks, at which lines may end
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n  ".join(line.replace(" ", "").replace("\0", " ") for line in lines)


def best_lines(answer: dict) -> str:
    """As `make demo` shows an answer."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        answer_quality.show(answer["results"])
    return shown.getvalue().rstrip()


def commands(data_dir: Path) -> dict[str, str]:
    """Name -> the command; the photos and places are those of the test split's first listings by id."""
    table = reading.read_csv(data_dir / "dataset" / "training_data.csv")
    tests = table[table["split"] == "test"].sort_values("image_id")
    products = reading.read_csv(data_dir / "tabular" / "products.csv").set_index("product_id")
    things = products[products["name"].str.contains(THING, case=False)].index
    photo = table[table["product_id"].isin(things)].sort_values("image_id").iloc[0]
    county = products.loc[photo["product_id"], "county"].replace(" ", "+")
    folder = f"data/{data_dir.name}/raw/images"
    return {
        "demo": f"curl -F image=@{folder}/{tests['image_id'].iloc[0]}.jpg -F k=5 {URL}/predict/similar_images",
        "health": f"curl {URL}/healthcheck",
        "photo": f'curl -F image=@{folder}/{photo["image_id"]}.jpg -F text="{THING} with case" -F max_price=100 -F k=1 '
        f"{URL}/predict/similar_images",
        "words": f'curl "{URL}/search?q={THING}&location={county}&k=1"',
        "predict": f'curl -F text="mountain bike, 21 gears, hardly used" {URL}/predict/listing',
        "refused": f"curl -F image=@README.md {URL}/predict/feature_embedding",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", type=Path, help="the demo's data folder (default: %(default)s)")
    parser.add_argument("--url", default=URL, help="where its API answers (default: %(default)s)")
    args = parser.parse_args()
    examples = {}
    for name, command in commands(args.data).items():
        answer = ask(command.replace(f"data/{args.data.name}/", f"{args.data}/"), args.url)
        examples[name] = {"command": command, "answer": best_lines(answer) if name == "demo" else shortened(answer)}
    measured = subprocess.run(
        [sys.executable, ROOT / "demo" / "answer_quality.py", "--data", args.data, "--url", args.url],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = json.loads(measured.stdout.splitlines()[-1])
    print(json.dumps(figures))
    results.save("demo", figures | {"examples": examples}, "python benchmarks/demo_answers.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
