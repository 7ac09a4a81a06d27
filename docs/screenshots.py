"""Take the pictures of the page in these pages: each view of a running service, light or dark, wide or on a phone.

Reads   a service that serves the sample marketplace (`make serve`), over HTTP, and one of its photos
Writes  docs/page.png, docs/page-*.png
Run     python docs/screenshots.py --url http://127.0.0.1:8080 --photo data/demo/raw/images/<image id>.jpg
"""

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
WORDS, TO_SELL = "excellent condition", "acoustic guitar with case"
DARK = ("", "-listing")  # the views that are shown dark too
COLOURS = 256  # of a picture: drawn photos and flat surfaces need no more
KEY_VARIABLE = "MARKETPLACE_API_KEY"  # where the service's key is, for the moderators' page; without it, that is left out


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the service (default: %(default)s)")
    parser.add_argument("--photo", required=True, type=Path, help="what the photo search looks for")
    parser.add_argument("--out", default=Path(__file__).parent, type=Path, help="folder of the pictures (default: docs)")
    args = parser.parse_args(argv)
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print(f"none of {', '.join(BROWSERS)} is on the PATH: install one", file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for suffix, viewport, scheme in (("", WIDE, "light"), ("-phone", PHONE, "light"), ("-dark", WIDE, "dark")):
            is_phone = viewport is PHONE
            context = browser.new_context(
                base_url=args.url, viewport=viewport, color_scheme=scheme, locale="en-GB", is_mobile=is_phone, has_touch=is_phone
            )
            for name, picture in views(context.new_page(), args.photo, is_phone):
                if scheme == "light" or name in DARK:
                    save(picture, args.out / f"page{name}{suffix}.png")
            context.close()
        browser.close()
    return 0


def views(page: Page, photo: Path, is_phone: bool):
    """The name and the picture of each view."""
    yield "-home", look(page, "/", "#browse .card img")
    yield "", look(page, f"/?q={WORDS}", "#results .card img")
    if is_phone:
        page.get_by_role("button", name="Filters").click()
        yield "-filters", picture_of(page)
    page.goto("/")
    page.locator("#photo-ways input").last.set_input_files(photo)
    page.locator("#results .card img").first.wait_for()
    yield "-photo", picture_of(page)
    first = page.request.get("/search", params={"q": WORDS, "k": 1}).json()["results"][0]["product_id"]
    yield "-listing", look(page, f"/?q={WORDS}&listing={first}", ".similar .card img")
    yield "-sell", look(page, f"/?view=sell&q={TO_SELL}", "#prediction .card img")
    if os.environ.get(KEY_VARIABLE):
        page.goto("/moderate")
        page.get_by_label("key").fill(os.environ[KEY_VARIABLE])
        page.get_by_role("button", name="Open").click()
        page.locator("#lists a", has_text="The same offer again").click()
        page.locator(".side-by-side img").first.wait_for()
        yield "-moderate", picture_of(page)


def look(page: Page, path: str, awaited: str) -> bytes:
    page.goto(path)
    page.locator(awaited).first.wait_for()
    return picture_of(page)


def picture_of(page: Page) -> bytes:
    page.wait_for_load_state("networkidle")
    return page.screenshot(animations="disabled")


def save(picture: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
