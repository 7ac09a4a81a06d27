"""The operator's files against the code: every flag, path, figure and limit that they name is one that there is.

deploy/check.sh tries the same files with the real tools.
"""

import configparser
import importlib
import json
import re
import shlex
from pathlib import Path

import httpx2
import pytest
import uvicorn
import yaml
from prometheus_client.parser import text_string_to_metric_families

import api
from marketplace.files import hidden, locks, stages
from marketplace.service import connections, settings, workers

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
STOP_S = 30  # gunicorn's own time for requests under way, of which uvicorn gets GRACEFUL_S


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


class Unit(configparser.RawConfigParser):
    """A systemd unit: its keys have capitals, and those that come twice are not asked for here."""

    def __init__(self):
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str
        self.read_string(text("marketplace.service"))


def bytes_of(size: str) -> int:
    return int(size[:-1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[size[-1].lower()]


def seconds_of(span: str) -> int:
    return int(span.removesuffix("s"))


def parsed(words: list[str]):
    """What a script of this checkout makes of its flags."""
    assert (ROOT / words[0]).is_file(), words
    return importlib.import_module(words[0].removesuffix(".py")).parse_args(words[1:])


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load(text("compose.yaml"))


@pytest.fixture(scope="module")
def nginx() -> dict[str, list[list[str]]]:
    """Directive -> the words of each time it is there."""
    found = {}
    for line in re.sub(r"#.*", "", text("nginx.conf")).splitlines():
        if match := re.match(r"\s*(\w+)\s+(.*?)[;{]?\s*$", line):
            found.setdefault(match[1], []).append(match[2].removesuffix(";").split())
    return found


# What Prometheus and Grafana ask for


def expressions() -> list[str]:
    rules = [rule["expr"] for group in yaml.safe_load(text("alerts.yml"))["groups"] for rule in group["rules"]]
    board = json.loads(text("grafana.json"))
    return rules + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def samples(served) -> dict[str, dict[str, set[str]]]:
    """Sample name -> label -> its values, of a service that has answered words, a photo and a wrong request."""
    with served.test_photo.open("rb") as photo:
        httpx2.post(f"{served.url}/predict/similar_images", files={"image": photo})
    httpx2.get(f"{served.url}/search", params={"q": "guitar"})
    found = {}
    for family in text_string_to_metric_families(httpx2.get(f"{served.url}/metrics").text):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


def test_every_figure_that_an_alert_or_panel_asks_for_is_one_of_the_services(samples):
    samples = samples | {  # there once a reload has been tried, and where a bucket is followed
        "marketplace_reloads_total": {"result": {"switched", "refused"}},
        "marketplace_bucket_timestamp_seconds": {"followed": {"generation", "hidden"}},
    }
    asked = set()
    for expression in expressions():
        for name, selector in re.findall(r"(marketplace_\w+|up)(?:\{([^}]*)\})?", expression):
            asked.add(name)
            if name != "up":
                assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) <= {*samples[name], "instance"}, expression
        by = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(",")}
        assert by <= {"instance", *(label for name in asked - {"up"} for label in samples[name])}, expression
    assert asked >= {"up", *(name for name in samples if re.search(r"_(total|seconds|pending|bucket)$", name))}


def test_alerts_name_results_and_paths_that_there_are():
    paths = set(api.create_app(api.parse_args([])).openapi()["paths"])
    reload_source = (ROOT / "marketplace" / "service" / "reload.py").read_text(encoding="utf-8")
    for expression in expressions():
        for result in re.findall(r'result="(\w+)"', expression):
            assert f'labels("{result}")' in reload_source
        for pattern in re.findall(r'path(?:=~|!=)"([^"]+)"', expression):
            for part in pattern.split("|"):
                assert any(re.fullmatch(part, path) for path in paths), part


def test_photos_wait_long_before_the_alert_and_the_queue_is_not_full_yet():
    rules = {rule["alert"]: rule for group in yaml.safe_load(text("alerts.yml"))["groups"] for rule in group["rules"]}
    assert 0 < int(rules["MarketplacePhotosWaiting"]["expr"].rpartition(">")[2]) < settings.MAX_PENDING


def test_every_alert_says_what_to_look_at_and_has_its_test():
    tested = (ROOT / "tests" / "deploy" / "alerts_test.yml").read_text(encoding="utf-8")
    for group in yaml.safe_load(text("alerts.yml"))["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary"} and rule["labels"]["severity"] in ("page", "ticket")
            assert f"alertname: {rule['alert']}\n        exp_alerts:" in tested, rule["alert"]


def test_prometheus_asks_the_port_that_the_api_listens_on():
    job = yaml.safe_load(text("prometheus.yml"))["scrape_configs"][0]
    assert job["job_name"] == "marketplace" and "metrics_path" not in job
    default = api.parse_args([])
    assert job["static_configs"][0]["targets"] == [f"{default.host}:{default.port}"]


def test_panels_do_not_lie_on_each_other():
    taken = [
        (x, y)
        for panel in json.loads(text("grafana.json"))["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24


# systemd


def test_the_unit_starts_the_api_on_loopback_with_its_data_readable():
    service = Unit()["Service"]
    python, *words = shlex.split(service["ExecStart"])
    started = parsed(words)
    assert python.startswith(service["WorkingDirectory"] + "/")
    assert started.host == "127.0.0.1" and started.port == 8080
    assert service["ReadOnlyPaths"] == str(started.data_dir) == f"/var/lib/{service['StateDirectory']}"
    assert service["ReadWritePaths"] == f"-{started.index_dir}"


def test_the_unit_waits_for_requests_under_way_and_lets_all_workers_connect():
    service = Unit()["Service"]
    started = parsed(shlex.split(service["ExecStart"])[1:])
    assert int(service["TimeoutStopSec"]) > STOP_S > workers.GRACEFUL_S
    assert int(service["LimitNOFILE"]) >= 2 * workers.MAX_CONNECTIONS
    assert bytes_of(service["MemoryMax"]) > started.max_bodies_bytes + started.workers * 500 * 2**20


def test_the_unit_lets_the_api_open_every_kind_of_socket_that_it_needs():
    assert set(Unit()["Service"]["RestrictAddressFamilies"].split()) == {"AF_INET", "AF_INET6", "AF_UNIX"}


# Containers


def test_the_image_runs_the_api_as_somebody_without_rights():
    lines = text("Containerfile").splitlines()
    stages_of_build = "\n".join(lines).split("\nFROM ")[2:]
    assert [stage.splitlines()[0].rpartition(" ")[2] for stage in stages_of_build] == ["full", "serve"]
    for stage in stages_of_build:
        command = json.loads(re.search(r"^CMD (.*)$", stage, re.MULTILINE)[1])
        assert parsed(command).host == "0.0.0.0"
        assert re.search(r"^USER (.*)$", stage, re.MULTILINE)[1] == "10001:10001"
    assert "requirements-serve.txt" in stages_of_build[1] and "requirements.txt" not in stages_of_build[1]


def test_what_the_image_copies_is_there_and_passes_the_list_of_what_may_be_in_it():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    for line in re.findall(r"^COPY (.*)$", text("Containerfile"), re.MULTILINE):
        for name in line.split()[:-1]:
            assert list(ROOT.glob(name)), name
            assert any(name == pattern or Path(name).match(pattern) for pattern in allowed), name


def test_compose_starts_scripts_with_flags_that_they_have(compose):
    started = parsed(compose["services"]["api"]["command"])
    assert started.host == "0.0.0.0" and str(started.data_dir) == "/data"
    commands = compose["services"]["stages"]["command"][0].splitlines()
    scripts = [shlex.split(command)[1] for command in commands]
    assert scripts == list(dict.fromkeys(stage.script for name, stage in stages.STAGES.items() if name != "evaluation"))
    assert all(parsed(shlex.split(command)[1:]).data == Path("/data") for command in commands)


def test_compose_gives_the_api_the_limits_of_the_unit(compose):
    service, unit = compose["services"]["api"], Unit()["Service"]
    assert bytes_of(service["mem_limit"]) == bytes_of(unit["MemoryMax"])
    assert service["pids_limit"] == int(unit["TasksMax"])
    assert seconds_of(service["stop_grace_period"]) == int(unit["TimeoutStopSec"])
    assert service["command"][-1] == shlex.split(unit["ExecStart"])[-1]


def test_compose_asks_for_what_has_no_default_and_publishes_on_loopback_alone(compose):
    assert settings.KEY_VARIABLE in compose["services"]["api"]["environment"]
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for name, value in service.get("environment", {}).items():
            assert not re.search("SECRET|PASSWORD|API_KEY", name) or ":?" in value, f"{name} has a default"


def test_compose_checks_health_where_no_key_is_needed(compose):
    check = " ".join(compose["services"]["api"]["healthcheck"]["test"])
    assert re.search(r"127\.0\.0\.1:8080(/\w+)", check)[1] in api.OPEN_PATHS


def test_compose_builds_targets_that_the_containerfile_has(compose):
    for name in ("stages", "api"):
        build = compose["services"][name]["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
        assert f" AS {build['target']}\n" in text("Containerfile")


def test_another_user_than_the_builder_may_read_all_that_is_served(demo_dir):
    """The unit and the image serve as users of their own what somebody else built."""
    for folder in (demo_dir / "index", demo_dir / "images"):
        allowed = folder.stat().st_mode & 0o444
        assert not [path for path in folder.rglob("*") if path.stat().st_mode & allowed != allowed]


# nginx


def test_nginx_takes_what_the_api_takes(nginx):
    assert [bytes_of(words[0]) for words in nginx["client_max_body_size"]] == [settings.MAX_UPLOAD_BYTES]
    assert f"the limit is {settings.MAX_UPLOAD_BYTES // 2**20} MiB" in text("nginx.conf")


def test_nginx_gives_headers_as_long_as_the_api_and_leaves_idle_connections_first(nginx):
    assert [seconds_of(words[0]) for words in nginx["client_header_timeout"]] == [connections.HEADERS_S]
    closed_after_s = min(uvicorn.Config("").timeout_keep_alive, workers.KEEP_ALIVE_S, connections.HEADERS_S)
    assert [seconds_of(words[0]) < closed_after_s for words in nginx["keepalive_timeout"]] == [True]


def test_nginx_hands_uploads_over_whole_and_paths_as_they_came(nginx):
    assert nginx["proxy_request_buffering"] == [["on"]] and nginx["merge_slashes"] == [["off"]]
    assert set(map(tuple, nginx["proxy_pass"])) == {("http://marketplace",)}
    default = api.parse_args([])
    assert f"{default.host}:{default.port}" in sum(nginx["server"], [])


def test_nginx_sets_paths_apart_that_there_are(nginx):
    paths = {"/", *api.create_app(api.parse_args([])).openapi()["paths"]}
    for words in nginx["location"]:
        if not words[-1].startswith("@"):
            assert words[-1] in paths if words[0] == "=" else any(path.startswith(words[0]) for path in paths), words


def test_nginx_writes_neither_searches_nor_photos_to_the_disk(nginx):
    servers = text("nginx.conf").count("\nserver {")
    assert nginx["access_log"] == [["off"]] * servers
    assert [words[-1] for words in nginx["error_log"]] == ["crit"] * servers
    assert nginx["client_body_temp_path"][0][0].startswith("/run/")


def test_nginx_answers_errors_of_its_own_in_the_apis_form():
    bodies = re.findall(r"return (\d+) '(.*)';", text("nginx.conf"))
    assert [status for status, _ in bodies] == ["403", "413", "503"]
    assert all(set(json.loads(body)) == {"detail"} for _, body in bodies)


# DVC


def test_dvc_runs_the_stages_of_the_table_on_what_they_read_and_write():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    runs = {}
    for stage in pipeline["stages"].values():
        script, *flags = [word for word in shlex.split(stage["cmd"])[1:] if "flags" not in word]
        assert parsed([script, *flags]).data == Path("${data}")
        folders = {path.removeprefix("${data}/") for path in stage["deps"] if path.startswith("${data}")}
        assert {path for path in stage["deps"] if not path.startswith("${data}")} == {script, "marketplace"}
        outputs = {path.removeprefix("${data}/"): how for entry in stage["outs"] for path, how in entry.items()}
        runs[script] = {name for name in folders if not name.startswith("raw/")}, outputs
    for script, (reads, outputs) in runs.items():
        contracts = {name: contract for name, contract in stages.STAGES.items() if contract.script == script}
        assert set(outputs) == set(contracts)
        assert reads == {read.stage for contract in contracts.values() for read in contract.reads}
        assert all(how["persist"] for how in outputs.values())
    assert set(runs) == {contract.script for contract in stages.STAGES.values()}
    uncached = {name for _, outputs in runs.values() for name, how in outputs.items() if how.get("cache") is False}
    assert uncached == {"images", "features", "embeddings", "index"}


def test_dvc_does_not_see_what_changes_while_the_api_serves():
    ignored = (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines()
    assert {locks.LOCK, hidden.LOCK, hidden.FILE} <= set(ignored) and "dvc.lock" not in ignored


# The page about it


def test_the_page_for_operators_names_every_file_for_them_and_none_that_is_not():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"deploy/([\w.]+\w)", page))
    assert named == {path.name for path in DEPLOY.iterdir() if path.is_file()}
