import io
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import api
from marketplace.service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-of-twenty-four-chr"


WEAK_KEY = "argument --api-key or MARKETPLACE_API_KEY: give at least 16 ASCII characters without blanks"


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--private"], {}, "argument --private: give a key with --api-key or MARKETPLACE_API_KEY"),
        (["--private-metrics"], {}, "argument --private-metrics: goes with --private"),
        (["--api-key", "short"], {}, WEAK_KEY),
        (["--api-key", "k" * 16 + " "], {}, WEAK_KEY),
        ([], {"MARKETPLACE_API_KEY": ""}, WEAK_KEY),
        (["--cors-origin", "*"], {}, "argument --cors-origin: '*' is not of the form https://host"),
        (["--workers", "0"], {}, "argument --workers: '0' is not a whole number above 0"),
    ],
)
def test_flags_that_cannot_be_are_usage_errors(capsys, monkeypatch, arguments, environment, sentence):
    monkeypatch.delenv("MARKETPLACE_API_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        api.parse_args(arguments)
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("MARKETPLACE_API_KEY", KEY)
    assert api.parse_args([]).api_key == KEY and api.parse_args(["--api-key", "k" * 16]).api_key == "k" * 16


def test_connections_do_not_wait_to_fill_packets():
    with api.listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


OPEN = (
    "every machine that reaches this one on port {port} may search, see listings and photos, upload photos and read /metrics: "
    "give a key and --private to close it\n"
)


@pytest.mark.parametrize(
    ("host", "private", "url", "warning"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:{port}", ""),
        ("localhost", False, "http://localhost:{port}", ""),
        ("::1", False, "http://[::1]:{port}", ""),
        ("0.0.0.0", False, "http://0.0.0.0:{port}", OPEN),
        ("0.0.0.0", True, "http://0.0.0.0:{port}", ""),
        ("::", False, "http://[::]:{port}", OPEN),
    ],
)
def test_it_says_where_it_answers_and_to_whom(capsys, host, private, url, warning):
    with api.listen(host, 0) as listening:
        api.tell(Settings(Path("data"), host=host, private=private, api_key=KEY), listening)
        port = listening.getsockname()[1]
    assert capsys.readouterr().err == f"loading, then answering on {url}\n{warning}".format(port=port)


def test_without_an_index_the_service_refuses_to_start_in_one_sentence(tmp_path):
    command = [sys.executable, "api.py", "--data", str(tmp_path), "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert (
        ended.stderr.splitlines()[-1] == f"error: {tmp_path / 'index'} holds no published index: run python build_index.py first"
    )
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_one_sentence(capsys, served, demo_dir):
    port = served.url.rpartition(":")[2]
    assert api.main(["--data", str(demo_dir), "--port", port]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1 port {port} (Address already in use): give another --port or --host\n"
    )


def test_a_port_that_cannot_be_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        api.parse_args(["--port", "99999"])
    assert capsys.readouterr().err.endswith("error: argument --port: 99999 is above 65535\n")


def test_the_service_on_a_cpu_imports_no_torch(demo_dir):
    photo = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(photo, "PNG")
    code = (
        "import sys, api; from starlette.testclient import TestClient; from pathlib import Path\n"
        f"settings = api.Settings(Path({str(demo_dir)!r}), device='cpu')\n"
        "with TestClient(api.create_app(settings)) as client:\n"
        f"    answer = client.post('/predict/feature_embedding', files={{'image': {photo.getvalue()!r}}})\n"
        "    assert answer.status_code == 200\n"
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "False\n"), ended.stderr
