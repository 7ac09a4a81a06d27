import graphlib
import posixpath
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import api
from marketplace.service.settings import Settings

WEB_DIR = Path(__file__).resolve().parents[2] / "web"
SCRIPT = re.compile(r"<script[^>]*\ssrc=\"([^\"]+)\"")
STATIC_IMPORT = r"^\s*(?:import|export)\s*(?:[^;\"'`=]*?\bfrom\s*)?[\"']([^\"']+)[\"']"
DYNAMIC_IMPORT = r"\b(import\s*\([^)]*\))"
IMPORT = re.compile(f"{STATIC_IMPORT}|{DYNAMIC_IMPORT}", re.MULTILINE)


def scripts_of(page: str) -> list[str]:
    return SCRIPT.findall((WEB_DIR / page).read_text("utf-8"))


def imports_of(source: str) -> list[str]:
    return [static or dynamic for static, dynamic in IMPORT.findall(source)]


def imported_modules(*pages: str) -> dict[str, set[str]]:
    """Path of each module that pages' scripts reach, as the browser asks for it -> the modules that it imports."""
    modules, waiting = {}, [script for page in pages for script in scripts_of(page)]
    while waiting:
        path = waiting.pop()
        if path in modules:
            continue
        source = (WEB_DIR / path.removeprefix("/web/")).read_text("utf-8")
        specifiers = imports_of(source)
        assert all(re.fullmatch(r"\./[\w-]+\.js", specifier) for specifier in specifiers), f"{path} imports {specifiers}"
        modules[path] = {posixpath.normpath(posixpath.join("/web", specifier)) for specifier in specifiers}
        waiting += modules[path]
    return modules


def test_every_way_to_import_is_recognised():
    source = """
import "./a.js";
import { b } from "./b.js";
import {
  c, d,
} from './c.js';
import * as e from "https://elsewhere.invalid/e.js";
export { f } from "./f.js";
export const g = "./not-imported.js";
const h = await import("./h.js");
"""
    wanted = ["./a.js", "./b.js", "./c.js", "https://elsewhere.invalid/e.js", "./f.js", 'import("./h.js")']
    assert imports_of(source) == wanted


def test_every_module_is_reached_from_a_page_and_imports_only_modules_beside_it():
    assert scripts_of("index.html") == ["/web/app.js"] and scripts_of("moderate.html") == ["/web/moderate.js"]
    scripts = {f"/web/{path.name}" for path in WEB_DIR.glob("**/*.js")}
    assert set(imported_modules("index.html", "moderate.html")) == scripts - set(scripts_of("docs.html"))


def test_the_shop_s_page_names_all_its_modules_so_that_none_waits_for_another():
    preloads = re.findall(r'<link rel="modulepreload" href="([^"]+)">', (WEB_DIR / "index.html").read_text("utf-8"))
    assert preloads == sorted(set(imported_modules("index.html")) - {"/web/app.js"})


def test_modules_import_one_way_with_the_page_s_script_on_top():
    modules = imported_modules("index.html")
    order = list(graphlib.TopologicalSorter(modules).static_order())  # raises CycleError
    assert order[-1] == "/web/app.js"
    assert all("/web/app.js" not in imported for imported in modules.values())


def test_the_pages_bear_the_shop_s_name_and_headline(tmp_path):
    settings = Settings(tmp_path, shop_name="Möbel & <Mehr>", headline='Stühle, "neu"')
    client = TestClient(api.create_app(settings))
    home, moderators = client.get("/").text, client.get("/moderate").text
    assert "<title>Möbel &amp; &lt;Mehr&gt;</title>" in home and ">Stühle, &quot;neu&quot;</h1>" in home
    assert "<title>Moderation – Möbel &amp; &lt;Mehr&gt;</title>" in moderators
    assert "<title>Möbel &amp; &lt;Mehr&gt; – API</title>" in client.get("/docs").text
    assert "Marketplace" not in home + moderators
    assert client.get("/openapi.json").json()["info"]["title"] == "Möbel & <Mehr> recommendations"
    as_they_are = TestClient(api.create_app(Settings(tmp_path)))
    assert as_they_are.get("/").text == (WEB_DIR / "index.html").read_text("utf-8")


@pytest.mark.parametrize("flag", ["--shop-name", "--headline"])
@pytest.mark.parametrize("text", ["", " ", "a\nb", "\udcff"])
def test_a_name_that_is_no_line_of_text_is_told(flag, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        api.parse_args([f"{flag}={text}"])
    assert stopped.value.code == 2 and capsys.readouterr().err.endswith(f"error: argument {flag}: give a line of text\n")
