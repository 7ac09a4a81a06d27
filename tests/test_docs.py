"""The pages against the code: what is generated is up to date, commands parse, links lead somewhere, nothing is left out."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import string
from pathlib import Path

import pytest

import api

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
README_BYTES = 12_000
LINE = 130
MEASURED = {"figures", "command", "date", "commit", "processor"}  # what benchmarks/results.py keeps

spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "render.py")
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands() -> list[list[str]]:
    """The words of every command in a shell block of any page, comments and prompts cut."""
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)]
    blocks += re.findall(r"`((?:python|make|torchrun) [^`]+)`", "".join(TEXTS.values()))
    lines = [part.strip().removeprefix("$ ") for line in "\n".join(blocks).splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(python|make|curl|torchrun) ", line)]


def anchors(text: str) -> set[str]:
    """The names under which GitHub links a page's headings."""
    kept = set(string.ascii_lowercase + string.digits + " -_")
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {"".join(letter for letter in head.lower() if letter in kept).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", render.pages(), ids=name_of)
def test_a_page_says_what_make_docs_would_write(path):
    assert path.read_text(encoding="utf-8") == render.pages()[path], "run make docs"


def test_the_page_of_flags_is_the_same_on_any_machine_and_terminal(monkeypatch):
    pages = set()
    for columns, cores in ((40, 1), (200, 64)):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        pages.add(render.command_line())
    assert len(pages) == 1


@pytest.mark.parametrize("script", render.SCRIPTS)
def test_every_flag_of_a_script_is_on_the_page_of_flags(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script.removesuffix(".py")).parse_args(["--help"])
    shown = set(re.findall(r"^  (--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))
    section = TEXTS[ROOT / "docs" / "cli.md"].partition(f"## {script}\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- `(--[\w-]+)", section, re.MULTILINE)) == shown


def test_the_page_of_flags_is_of_every_script():
    assert set(render.SCRIPTS) == {path.name for path in ROOT.glob("*.py")}


def test_every_command_in_a_page_parses():
    ran = set()
    for name, *words in commands():
        if name == "torchrun":
            words = words[2:]  # its own flag
        if name not in ("python", "torchrun") or words[0] in ("-m", "SCRIPT"):
            continue
        assert (ROOT / words[0]).is_file(), words
        if words[0] in render.SCRIPTS:
            importlib.import_module(words[0].removesuffix(".py")).parse_args(words[1:])
            ran.add(words[0])
    assert ran == set(render.SCRIPTS)


def test_every_make_target_in_a_page_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {word for name, *words in commands() if name == "make" for word in words if "=" not in word}
    assert {"demo", "test", "check-deploy", "serve", "setup", "docs"} <= named <= targets
    variables = {word.partition("=")[0] for name, *words in commands() if name == "make" for word in words if "=" in word}
    assert all(f"$({variable})" in makefile for variable in variables)


def test_every_endpoint_has_a_row_and_none_that_does_not_exist():
    paths = set(api.create_app(api.parse_args([])).openapi()["paths"]) | {"/", "/docs", "/moderate"}
    page = TEXTS[ROOT / "docs" / "api.md"]
    assert set(re.findall(r"^\| `(?:GET|POST) (/[^`]*)`", page, re.MULTILINE)) == paths


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_every_requirement_has_its_reason(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    packages = {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith(("#", "-"))}
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", TEXTS[ROOT / "docs" / "dependencies.md"], re.MULTILINE)
    assert packages <= {package for row in rows for package in re.findall(r"`([\w-]+)`", row)}


def test_no_package_has_a_reason_that_is_not_required():
    lines = [line for path in ROOT.glob("requirements*.txt") for line in path.read_text(encoding="utf-8").splitlines()]
    required = {match[0] for line in lines if (match := re.match(r"[\w-]+", line))}
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", TEXTS[ROOT / "docs" / "dependencies.md"], re.MULTILINE)
    assert {package for row in rows for package in re.findall(r"`([\w-]+)`", row)} <= required


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXTS[path]):
        if target.startswith("https://"):
            continue
        page = (path.parent / target).resolve() if target else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", TEXTS[ROOT / "README.md"]))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_readme_is_short():
    assert len(TEXTS[ROOT / "README.md"].encode()) <= README_BYTES


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_lines_of_text_are_short(path):
    """Tables, blocks of code and what a benchmark says of itself are as long as they are."""
    text = re.sub(r"```.*?```|<!-- begin: (.+?) -->.*?<!-- end: \1 -->", "", TEXTS[path], flags=re.DOTALL)
    assert not [line for line in text.splitlines() if len(line) > LINE and not line.startswith("|")]


def test_every_figure_says_when_where_and_how_it_was_measured():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert set(kept) == MEASURED, path.name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", kept["date"]), path.name
        assert not kept["commit"].endswith("-dirty"), f"{path.name} was measured in a state that no commit holds"
        script = kept["command"].split()[1]
        assert (ROOT / script).is_file(), kept["command"]


def test_a_part_that_the_code_does_not_know_is_an_error():
    with pytest.raises(KeyError):
        render.render("<!-- begin: no such part -->\n<!-- end: no such part -->")


def test_every_part_is_on_a_page():
    used = set(re.findall(r"<!-- begin: (.+?) -->", "".join(TEXTS.values())))
    assert used == set(render.PARTS)
