"""The README against the code: its commands parse, its paths exist, and no flag or endpoint is left out."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import api
from marketplace import storage

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = [*storage.SCRIPTS.values(), "api.py"]


def commands() -> list[list[str]]:
    """The words of every command in a shell block, comments and prompts cut."""
    blocks = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", README, re.DOTALL))
    lines = [part.strip().removeprefix("$ ") for line in blocks.splitlines() for part in line.split("&&")]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(python|make|curl) ", line)]


def help_of(script: str, capsys) -> str:
    with pytest.raises(SystemExit):
        importlib.import_module(script.removesuffix(".py")).parse_args(["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_a_script_is_in_the_readme(script, capsys):
    section = re.search(rf"^\| `{re.escape(script)}` \| (.*) \|$", README.partition("## Flags")[2], re.MULTILINE)
    documented = set(re.findall(r"`(--[\w-]+)", section[1])) | {"--data", "--help"}
    assert documented == set(re.findall(r"(--[a-z][\w-]*)", help_of(script, capsys)))


def test_every_command_in_the_readme_parses(capsys):
    ran = set()
    for name, *words in commands():
        if name != "python" or words[0] == "-m":
            continue
        assert (ROOT / words[0]).is_file(), words
        if words[0] in SCRIPTS:
            importlib.import_module(words[0].removesuffix(".py")).parse_args(words[1:])
            ran.add(words[0])
    assert ran == set(SCRIPTS)


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for name, *words in commands() if name == "make" for word in words if "=" not in word}
    assert {"demo", "test", "serve"} <= named <= targets


def test_every_endpoint_is_in_the_readme_and_none_that_does_not_exist():
    paths = set(api.create_app(api.Settings(Path("data"))).openapi()["paths"]) | {"/", "/docs"}
    table = README.partition("## The API")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(?:GET|POST) (/[^`]*)`", table, re.MULTILINE)) == paths


def test_the_layout_in_the_readme_is_the_layout():
    tree = README.partition("## Layout")[2].partition("```\n")[2].partition("```")[0]
    named = set(re.findall(r"^(\S+\.py)\s", tree, re.MULTILINE))
    modules = {f"  {path.name}" for path in (ROOT / "marketplace").glob("*.py") if path.name != "__init__.py"}
    assert {f"  {name}" for name in re.findall(r"^  (\w+\.py)\s", tree, re.MULTILINE)} == modules
    assert named == {path.name for path in ROOT.glob("*.py")}


def test_every_requirement_has_its_reason():
    section = README.partition("## Dependencies")[2].partition("\n## ")[0]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    packages = {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")}
    assert packages <= set(re.findall(r"`([\w-]+)`", section))


def test_every_link_to_a_file_leads_to_one():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
