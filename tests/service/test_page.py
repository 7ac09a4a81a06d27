import os
import re
import shutil
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAUNCH_FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
TIMEOUT_MS = 10_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
HOSTILE = '<img src="https://elsewhere.invalid/x.png" onerror="window.hacked = true"><script>window.hacked = true</script>'


@pytest.fixture(scope="session", autouse=True)
def chromium() -> str:
    """Path of a Chromium: looked for first, so that no marketplace is built where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = f"the page's tests need a Chromium: none of {', '.join(BROWSERS)} is on the PATH"
        if os.environ.get("REQUIRE_CHROMIUM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="module")
def context(chromium, served):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=LAUNCH_FLAGS)
        context = browser.new_context(viewport=DESKTOP, base_url=served.url)
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        browser.close()


@pytest.fixture
def problems():
    """What no visit may leave behind: console errors, exceptions, refused requests, requests to another origin."""
    return []


at_both_widths = pytest.mark.parametrize("page", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])


@pytest.fixture
def page(request, context, served, problems):
    page = context.new_page()
    page.set_viewport_size(getattr(request, "param", DESKTOP))

    def hear(message):
        # A refused request is recorded below, with its path.
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            problems.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(f"{served.url}/") or problems.append(f"left for {request.url}"))
    page.on(
        "response",
        lambda answer: answer.ok or answer.status == 304 or problems.append(f"{answer.status} {urlsplit(answer.url).path}"),
    )
    yield page
    page.close()
    assert problems == []


@pytest.fixture(scope="module")
def listing(served):
    """A listing with photos whose name no other has."""
    unique = served.products.drop_duplicates("name", keep=False)
    return unique[(unique["photos"] > 1) & unique["price_plausible"]].iloc[0]


def open_filters(page):
    if page.viewport_size == PHONE:  # where they are folded away
        page.get_by_text("Filters").first.click()


def settled(page, results="#results"):
    """The results, once the newest request is answered; the page marks them busy before an action returns."""
    expect(page.locator(results)).to_have_attribute("aria-busy", "false")
    return page.locator(f"{results} .card")


def listing_ids(page, results="#results"):
    settled(page, results)
    return page.locator(f"{results} .card a").evaluate_all("links => links.map((link) => link.dataset.listing)")


def search(page, words):
    page.get_by_label("Words to look for").fill(words)
    page.get_by_role("button", name="Search").click()
    return settled(page)


def choose_photo(page, path, form="#search-form"):
    with page.expect_file_chooser() as chooser:
        page.locator(f"{form} .pick").click()
    chooser.value.set_files(path)


def told(cards):
    """The match in percent and the reasons, as each card tells them."""
    cards.first.wait_for()
    matches = [int("".join(card.locator(".match").all_inner_texts()).removesuffix("% match") or 0) for card in cards.all()]
    reasons = [card.get_by_role("list", name="Why").get_by_role("listitem").all_inner_texts() for card in cards.all()]
    assert len(matches) == len(reasons) > 0
    return list(zip(matches, reasons, strict=True))


def reasons_of(cards):
    return {reason for _, reasons in told(cards) for reason in reasons}


def change_results(page, **changes):
    """Searches for words are answered with other fields."""

    def change(route):
        answer = route.fetch().json()
        results = [result | changes.get("result", {}) for result in answer["results"]]
        route.fulfill(json=answer | {"results": results} | {name: value for name, value in changes.items() if name != "result"})

    page.route("**/search?*", change)


def query_of(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


@at_both_widths
def test_words_find_listings_and_each_says_why(page, listing):
    page.goto("/")
    cards = search(page, listing["name"])
    assert listing_ids(page)[0] == listing["product_id"]
    expect(page.get_by_role("status").first).to_contain_text(f"“{listing['name']}”")
    expect(cards.first).to_contain_text(f"£{listing['price']:,.2f}".removesuffix(".00"))
    expect(cards.first).to_contain_text(listing["category"])
    answer = page.request.get("/search", params={"q": listing["name"], "k": 24}).json()["results"]
    assert told(cards) == [(int(result["score"] * 100 + 0.5), result["reasons"][:4]) for result in answer]
    assert any("has “" in reason for reason in told(cards)[0][1])
    assert {text.lower() for text in cards.first.locator("mark").all_inner_texts()} <= set(listing["name"].lower().split())
    expect(cards.first.locator("mark").first).to_be_visible()


@at_both_widths
def test_a_chosen_photo_finds_its_own_listing_and_words_can_be_added(page, served):
    page.goto("/")
    choose_photo(page, served.test_photo)
    cards = settled(page)
    expect(page.get_by_role("status").first).to_contain_text("for your photo, best first")
    expect(page.locator("#search-form").get_by_role("img", name="The chosen photo")).to_be_visible()
    assert "looks like your photo" in told(cards)[0][1]
    assert not any(reason.startswith("has “") for reason in reasons_of(cards))
    search(page, "good condition")
    expect(page.get_by_role("status").first).to_contain_text("your photo and “good condition”")
    assert {"looks like your photo", "has “good”, “condition”"} <= reasons_of(settled(page))
    page.get_by_role("button", name="Remove the photo").click()
    expect(page.get_by_role("status").first).to_contain_text("for “good condition”")
    assert query_of(page) == {"q": "good condition"}


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_photo_is_searched_for(page, served, way):
    page.goto("/")
    page.evaluate(
        """async ([way, name]) => {
            const files = new DataTransfer();
            files.items.add(new File([await (await fetch(name)).blob()], "photo.jpg", { type: "image/jpeg" }));
            document.body.dispatchEvent(way === "drop"
                ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true }));
        }""",
        [way, f"/images/{served.test_photo.stem}.jpg"],
    )
    expect(page.get_by_role("status").first).to_contain_text("for your photo")
    assert "looks like your photo" in told(settled(page))[0][1]


@at_both_widths
@pytest.mark.parametrize("with_photo", [False, True])
def test_filters_narrow_the_results(page, served, listing, with_photo):
    products = served.products.set_index("product_id")
    page.goto("/")
    if with_photo:
        choose_photo(page, served.test_photo)
        settled(page)
    search(page, listing["name"])
    open_filters(page)
    main, *levels = listing["category"].split(" / ")
    page.get_by_role("combobox", name="Category", exact=True).select_option(main)
    page.get_by_role("combobox", name=f"In {main}").select_option(f"{main} / {levels[0]}")
    found = listing_ids(page)
    wanted = products.index[products["category"].str.startswith(f"{main} / {levels[0]}")]
    assert set(found) <= set(wanted) and listing["product_id"] in found
    assert not with_photo or set(found) == set(wanted)
    assert query_of(page)["category"] == f"{main} / {levels[0]}"
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Highest price in pounds").fill("20")
    page.get_by_label("Town or county").fill(listing["county"])
    page.get_by_label("Lowest price in pounds").fill("1")
    page.get_by_role("button", name="Search").click()
    found = listing_ids(page)
    nearby = products[(products["county"] == listing["county"]) | (products["town"] == listing["county"])]
    within = set(nearby.index[nearby["price"].between(1, 20)])
    assert found and set(found) <= within and (set(found) == within or not with_photo)
    page.get_by_label("Highest price in pounds").fill("")
    page.get_by_label("Lowest price in pounds").fill("9000000")
    page.get_by_label("Lowest price in pounds").press("Enter")
    expect(page.locator("#results")).to_contain_text("No listing matches within these filters")
    page.get_by_role("link", name="Search without filters").click()
    expect(settled(page).first).to_be_visible()


@at_both_widths
def test_more_listings_are_shown_on_demand_and_only_they_are_asked_for(page):
    asked = []
    page.on("request", lambda request: "/search" in request.url and asked.append(parse_qs(urlsplit(request.url).query)))
    page.goto("/?min_price=1")
    cards = settled(page)
    expect(cards).to_have_count(24)
    first = listing_ids(page)
    page.get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(48)
    expect(cards.nth(24).get_by_role("link")).to_be_focused()
    assert listing_ids(page)[:24] == first and len(set(listing_ids(page))) == 48
    assert [(query["k"], query.get("offset")) for query in asked] == [(["24"], None), (["24"], ["24"])]
    page.reload()
    expect(cards).to_have_count(48)
    assert listing_ids(page)[:24] == first


def test_weak_matches_can_be_left_out(page, served):
    page.goto("/")
    choose_photo(page, served.test_photo)
    everything = told(settled(page))
    page.get_by_label("Match").select_option("50% or more")
    expect(page.get_by_role("status").first).not_to_contain_text("The best")
    strong = told(settled(page))
    assert strong == [card for card in everything if card[0] >= 50] and len(strong) < len(everything)
    assert query_of(page) == {"min_score": "0.5"}


def test_listings_folded_into_one_are_counted(page):
    def fold(route):
        results = route.fetch().json()["results"]
        route.fulfill(json={"results": [result | {"duplicates": 2 * place} for place, result in enumerate(results)]})

    page.route("**/search?*", fold)
    page.goto("/?q=good")
    cards = settled(page)
    expect(cards.nth(1)).to_contain_text("Listed 3 times")
    expect(cards.nth(0)).not_to_contain_text("Listed")


@at_both_widths
def test_the_number_of_all_listings_is_told_with_more_than_are_counted(page):
    for total, at_least, words in ((87, False, "of 87 listings"), (1000, True, "of 1,000+ listings")):
        change_results(page, total=total, total_is_at_least=at_least)
        page.goto("/?q=good+condition")
        n = settled(page).count()
        more = page.get_by_role("button", name="Show more").count()
        expected = f"The best {n} {words} for" if more else f"{n} listings for"
        expect(page.get_by_role("status").first).to_contain_text(f"{expected} “good condition”, best first.")
        page.unroute("**/search?*")


def test_more_than_a_page_is_told_with_its_total(page):
    def repeat(route):
        answer = route.fetch().json()
        route.fulfill(json=answer | {"results": answer["results"][:1] * 24, "total": 1000, "total_is_at_least": True})

    page.route("**/search?*", repeat)
    page.goto("/?q=good")
    expect(page.get_by_role("status").first).to_have_text("The best 24 of 1,000+ listings for “good”, best first.")


@at_both_widths
def test_what_comes_nearest_is_shown_apart_where_nothing_is_close(page, problems):
    def empty(route):
        answer = route.fetch().json()
        nearest = [result | {"close": False} for result in answer["results"][:3]]
        route.fulfill(json=answer | {"results": [], "total": 0, "nearest": nearest})

    page.route("**/search?*", empty)
    page.goto("/?q=good")
    expect(page.get_by_role("status").first).to_have_text("Nothing close to “good”: these come nearest.")
    nearest = page.get_by_role("region", name="These come nearest")
    expect(nearest.locator(".card")).to_have_count(3)
    expect(page.locator("#results .empty")).to_contain_text("Try other or fewer words, or a photo.")
    assert Axe().run(page).violations_count == 0
    page.unroute("**/search?*")
    page.goto("/?q=zzzzqqqq")
    expect(page.get_by_role("status").first).to_contain_text("Nothing close to “zzzzqqqq”")


def test_a_photo_to_which_nothing_is_close_is_told_and_still_answered(page, served):
    close = False
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": served.test_photo.read_bytes()}
    answer = page.request.post("/predict/similar_images", multipart={"image": photo}).json()

    def change(route):
        results = [result | {"close": close and not place} for place, result in enumerate(answer["results"])]
        route.fulfill(json=answer | {"results": results})

    page.route("**/predict/similar_images", change)
    page.goto("/")
    choose_photo(page, served.test_photo)
    expect(page.get_by_role("status").first).to_have_text("Nothing close to your photo: these come nearest.")
    assert settled(page).count() > 3
    close = True
    page.reload()
    choose_photo(page, served.test_photo)
    expect(page.get_by_role("status").first).to_contain_text("for your photo, best first.")


@at_both_widths
def test_a_correction_is_told_with_what_was_typed(page):
    page.goto("/?q=guitarr")
    cards = settled(page)
    expect(page.locator(".corrections")).to_have_text("Showing results for guitar (you typed “guitarr”).")
    expect(page.locator(".corrections strong")).to_have_text("guitar")
    assert "spelt: guitar" in reasons_of(cards)
    search(page, "guitar")
    expect(page.locator(".corrections")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "marks", "marked", "text"),
    [
        ("🎸🎸 Guitar, a guitar", [[3, 9], [13, 19]], ["Guitar", "guitar"], "🎸🎸 Guitar, a guitar"),
        ("Bed", [[0, 3]], ["Bed"], "Bed"),
        ("Bed", [], [], "Bed"),
        ("<b>bed</b>", [[3, 6]], ["bed"], "<b>bed</b>"),
    ],
)
def test_matched_words_are_marked_by_characters(page, name, marks, marked, text):
    change_results(page, result={"name": name, "name_marks": marks})
    page.goto("/?q=good")
    link = settled(page).first.get_by_role("link")
    expect(link).to_have_text(text)
    assert link.locator("mark").all_inner_texts() == marked


def test_no_engine_term_is_shown_and_at_most_four_reasons(page):
    change_results(page, result={"reasons": ["one", "two", "three", "four", "five"]})
    page.goto("/?q=good")
    assert told(settled(page))[0][1] == ["one", "two", "three", "four"]
    change_results(page, result={"reasons": []})
    page.goto("/?q=condition")
    card = settled(page).first
    expect(card.locator(".reasons")).to_have_count(0)
    assert not re.search(r"\b(words|text|category|photo|price|place) \d+%", page.locator("main").inner_text())


def test_listings_without_a_score_say_no_match(page):
    change_results(page, result={"score": None, "close": None, "parts": {}, "reasons": []})
    page.goto("/?q=good")
    expect(settled(page).first).to_be_visible()
    expect(page.locator(".match")).to_have_count(0)


@at_both_widths
def test_a_category_of_the_first_page_leads_to_its_listings_the_newest_first(page, served, listing):
    products = served.products.set_index("product_id")
    page.goto("/")
    page.get_by_role("region", name="Or look around").get_by_role("link", name=listing["main_category"]).click()
    ids = listing_ids(page)
    wanted = products.query("main_category == @listing.main_category")
    assert set(ids) == set(wanted.index) and query_of(page) == {"category": listing["main_category"]}
    assert list(products["posted_on"][ids]) == sorted(wanted["posted_on"], reverse=True)
    expect(page.get_by_role("status").first).to_have_text(f"{len(ids)} listings, the newest first.")
    expect(page.locator(".match")).to_have_count(0)
    settled(page).first.get_by_role("link").click()
    page.get_by_role("link", name="Back to the results").click()
    assert listing_ids(page) == ids


@at_both_widths
def test_a_listing_shows_its_photos_its_description_and_more_like_it(page, listing):
    page.goto("/")
    search(page, listing["name"])
    page.get_by_role("link", name=listing["name"]).click()
    view = page.get_by_role("article", name=listing["name"])
    expect(view.get_by_role("heading", name=listing["name"])).to_be_focused()
    assert query_of(page)["listing"] == listing["product_id"]
    assert view.locator(".description").inner_text().split() == listing["description"].split()
    expect(view).to_contain_text(", ".join(filter(None, [listing["town"], listing["county"]])))
    expect(view.get_by_role("navigation", name="Category").get_by_role("link")).to_have_text(listing["category"].split(" / "))
    large = view.get_by_role("img", name=f"of {listing['photos']}")
    first = large.get_attribute("src")
    view.get_by_role("button", name="Show photo 2").click()
    expect(large).not_to_have_attribute("src", first)
    similar = view.get_by_role("region", name="More like this").locator(".card")
    expect(similar.first).to_be_visible()
    assert "looks like the one you viewed" in reasons_of(similar)
    ids = listing_ids(page, "#listing-view")
    assert listing["product_id"] not in ids
    similar.first.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_be_focused()
    assert query_of(page)["listing"] == ids[0]


@at_both_widths
def test_selling_shows_likely_categories_and_a_price_range(page, served, listing):
    page.goto("/")
    page.get_by_role("link", name="Sell").click()
    page.get_by_role("button", name="Estimate").click()
    expect(page.get_by_role("alert").filter(has_text="Add a photo, some words, or both.")).to_be_visible()
    page.get_by_label("Describe it").fill(listing["name"])
    page.get_by_role("button", name="Estimate").click()
    categories = page.get_by_role("region", name="Category").get_by_role("listitem")
    expect(categories).to_have_count(5)
    answer = page.request.post("/predict/listing", multipart={"text": listing["name"]}).json()
    expect(categories.first).to_contain_text(answer["categories"][0]["category"])
    expect(categories.first).to_contain_text(f"{answer['categories'][0]['probability']:.0%}")
    prices = page.get_by_role("region", name="Price")
    expect(prices).to_contain_text(re.compile(r"£[\d,.]+ to £[\d,.]+"))
    held = []
    page.route("**/predict/listing", lambda route: held.append(route))  # or the answer may come before the status is read
    choose_photo(page, served.test_photo, "#sell-form")
    expect(page.locator("#sell-status")).to_have_text("Looking at the photo…")
    held[0].continue_()
    page.unroute("**/predict/listing")
    expect(page.locator("#prediction")).to_have_attribute("aria-busy", "false")
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": served.test_photo.read_bytes()}
    answer = page.request.post("/predict/listing", multipart={"text": listing["name"], "image": photo}).json()
    expect(categories.first).to_contain_text(f"{answer['categories'][0]['probability']:.0%}")
    page.get_by_role("link", name="See listings like it").click()
    expect(page.get_by_role("status").first).to_contain_text("your photo and")


@pytest.mark.parametrize("address", ["/", "/?view=sell"])
def test_a_text_file_as_photo_is_refused_in_words(page, problems, tmp_path, address):
    not_a_photo = tmp_path / "notes.txt"
    not_a_photo.write_text("a shopping list")
    page.goto(address)
    selling = "sell" in address
    page.locator(f"{'#sell-form' if selling else '#search-form'} input[type=file]").set_input_files(not_a_photo)
    sentence = page.get_by_role("alert").filter(has_text=re.compile("^not a usable image"))
    expect(sentence).to_be_visible()
    assert problems == ["400 /predict/listing" if selling else "400 /predict/similar_images"]
    problems.clear()
    page.get_by_role("button", name="Remove the photo").click()
    expect(sentence).to_have_count(0)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/?q=lamp&min_price=9&max_price=3", "min_price 9 is above max_price 3: swap them"),
        ("/?listing=no-such-listing", "no listing has the id no-such-listing"),
    ],
)
def test_what_the_api_refuses_is_told_in_its_words(page, problems, address, sentence):
    page.goto(address)
    expect(page.get_by_role("alert").filter(has_text=sentence)).to_be_visible()
    assert len(problems) == 1 and re.match("4(04|22) ", problems.pop())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"status": 503, "json": {"detail": "too many photos are being looked at"}}, "too many photos are being looked at"),
        ({"status": 500, "body": "Internal Server Error"}, "The service failed (status 500): try again."),
        (None, "The service cannot be reached: check the connection, then try again."),
    ],
)
def test_a_failing_service_is_told_and_searching_again_mends_it(page, problems, answer, sentence):
    page.route("**/search?*", lambda route: route.fulfill(**answer) if answer else route.abort())
    page.goto("/?q=good")
    expect(page.get_by_role("alert").filter(has_text=sentence)).to_be_visible()
    assert len(problems) == 1
    problems.clear()
    page.unroute("**/search?*")
    page.get_by_role("button", name="Search").click()
    expect(settled(page).first).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text=sentence)).to_have_count(0)


def test_a_shared_address_restores_the_search_and_back_and_forward_work(page, served, listing):
    shared = {"q": listing["name"], "category": listing["main_category"], "max_price": "5000", "location": listing["county"]}
    page.goto("/")
    page.goto(f"/?{urlencode(shared)}")
    ids = listing_ids(page)
    answer = page.request.get("/search", params=shared | {"k": 24}).json()
    assert ids == [result["product_id"] for result in answer["results"]] and ids
    expect(page.get_by_label("Words to look for")).to_have_value(listing["name"])
    expect(page.get_by_role("combobox", name="Category", exact=True)).to_have_value(listing["main_category"])
    expect(page.get_by_label("Highest price in pounds")).to_have_value("5000")
    expect(page.get_by_label("Town or county")).to_have_value(listing["county"])
    link = settled(page).first.get_by_role("link")
    name = link.inner_text()
    link.click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
    page.go_back()
    assert listing_ids(page) == ids and query_of(page) == shared
    expect(link).to_be_focused()
    page.go_forward()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()
    page.get_by_role("link", name="Back to the results").click()
    assert listing_ids(page) == ids and query_of(page) == shared


def test_back_brings_a_photo_search_back_and_a_reload_says_that_the_photo_is_gone(page, served):
    page.goto("/")
    choose_photo(page, served.test_photo)
    ids = listing_ids(page)
    settled(page).first.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_be_focused()
    page.go_back()
    assert listing_ids(page) == ids
    expect(page.get_by_role("img", name="The chosen photo")).to_be_visible()
    page.reload()
    expect(page.get_by_role("status").first).to_contain_text("choose it again")


def test_hostile_listing_text_is_shown_as_text(page, listing):
    hostile = {"name": HOSTILE, "category": f"{HOSTILE} / {HOSTILE}", "town": HOSTILE, "county": HOSTILE}
    outside = {"product_id": '"><b>', "photo_url": "https://elsewhere.invalid/x.jpg", "price": 0, "price_plausible": False}

    def poison(route):
        results = route.fetch().json()["results"]
        route.fulfill(json={"results": [result | hostile | outside for result in results]})

    def poison_listing(route):
        photos = [{"image_id": "x", "photo_url": "javascript:window.hacked = true"}]
        product = {**outside, **hostile, "description": HOSTILE, "posted_on": HOSTILE, "photos": photos}
        route.fulfill(json={"results": []} if "/similar" in route.request.url else product)

    page.route("**/search?*", poison)
    page.route("**/products/**", poison_listing)
    page.goto("/?q=good")
    card = settled(page).first
    expect(card.get_by_role("link")).to_have_text(HOSTILE)
    expect(card).to_contain_text("Free")
    expect(card).not_to_contain_text("price unlikely")
    expect(card.get_by_role("img", name="No photo")).to_be_visible()
    card.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_have_text(HOSTILE)
    expect(page.locator(".description")).to_have_text(HOSTILE)
    expect(page.locator("#listing-view")).to_contain_text("Nothing like it yet.")
    page.goto(f"/?{urlencode({'q': HOSTILE})}")
    expect(page.get_by_role("status").first).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img[src*=elsewhere]").count() == 1  # the page's own module


@pytest.mark.parametrize(
    ("price", "plausible", "told"),
    [(1234567.0, False, "£1,234,567price unlikely"), (0.0, False, "Free"), (12.5, True, "£12.50"), (None, False, "No price")],
)
def test_a_price_is_told_as_what_it_means(page, price, plausible, told):
    def change(route):
        results = route.fetch().json()["results"]
        route.fulfill(json={"results": [result | {"price": price, "price_plausible": plausible} for result in results]})

    page.route("**/search?*", change)
    page.goto("/?q=good")
    expect(settled(page).first.locator(".price")).to_have_text(told)


def test_the_policy_of_the_page_forbids_script_from_text(page, problems):
    page.goto("/")
    assert page.evaluate("try { document.body.innerHTML = '<p>'; 'written' } catch (error) { error.name }") == "TypeError"
    assert len(problems) == 1 and "TrustedHTML" in problems.pop()
    assert page.locator("script:not([src]), style, [style]").count() == 0


def test_a_new_search_gives_the_old_one_up_and_waiting_is_shown(page):
    held = []
    page.route("**/search?q=first*", lambda route: held.append(route))
    page.goto("/?q=first")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("status").first).to_have_text("Looking…")
    with page.expect_event("requestfailed", lambda request: "q=first" in request.url):
        search(page, "good")
    expect(page.get_by_role("status").first).to_contain_text("for “good”")
    assert len(held) == 1


def test_nothing_scrolls_sideways_on_a_phone(page, served, listing):
    page.set_viewport_size(PHONE)
    too_wide = "document.documentElement.scrollWidth - innerWidth"
    page.goto("/")
    expect(page.get_by_role("region", name="Or look around")).to_be_visible()
    assert page.evaluate(too_wide) == 0
    choose_photo(page, served.test_photo)
    page.get_by_text("Filters").first.click()
    page.get_by_role("combobox", name="Category", exact=True).select_option(listing["main_category"])
    expect(settled(page).first).to_be_visible()
    assert page.evaluate(too_wide) == 0
    page.goto(f"/?listing={listing['product_id']}")
    expect(page.locator(".similar .card").first).to_be_visible()
    assert page.evaluate(too_wide) == 0
    page.goto(f"/?view=sell&q={listing['name']}")
    expect(page.get_by_role("region", name="Price")).to_be_visible()
    assert page.evaluate(too_wide) == 0

    def lengthen(route):
        endless = {"name": "W" * 300, "category": "W" * 300, "town": "W" * 300, "price": 1e12, "price_plausible": False}
        route.fulfill(json={"results": [result | endless for result in route.fetch().json()["results"]]})

    page.route("**/search?*", lengthen)
    page.goto("/?q=good")
    expect(settled(page).first).to_be_visible()
    assert page.evaluate(too_wide) == 0


def test_the_page_follows_the_colour_scheme(page):
    page.goto("/")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    page.emulate_media(color_scheme="light")
    assert min(page.evaluate(ground)) > 200
    page.emulate_media(color_scheme="dark")
    assert max(page.evaluate(ground)) < 50


def test_the_keyboard_alone_finds_and_opens_a_listing(page, served, listing):
    page.on("filechooser", lambda chooser: chooser.set_files(served.test_photo))
    page.goto("/")
    keyboard = page.keyboard
    focused = page.locator(":focus")

    def tab_to(wanted, limit=20):
        for _ in range(limit):
            keyboard.press("Tab")
            if focused.evaluate("(node, wanted) => node.matches(wanted)", wanted):
                return
        pytest.fail(f"{wanted} is not reached with {limit} tabs")

    keyboard.press("Tab")
    expect(focused).to_have_text("Skip to content")
    expect(focused).to_be_in_viewport()
    keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    tab_to("input[type=file]")
    assert page.locator("#search-form .pick").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("for your photo")
    expect(page.get_by_role("button", name="Remove the photo")).to_be_focused()
    tab_to("input[name=q]")
    assert focused.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    keyboard.type(listing["name"])
    keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text(f"and “{listing['name']}”")
    tab_to("select[name=level]")
    keyboard.press("ArrowDown")
    settled(page)
    expect(page.get_by_role("combobox", name="Category", exact=True)).to_be_focused()
    assert query_of(page)["category"]
    keyboard.press("ArrowUp")
    settled(page)
    tab_to("input[name=location]")
    tab_to(".card a")
    assert page.locator(".card").first.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    name = focused.inner_text()
    keyboard.press("Enter")
    expect(page.locator("#listing-title")).to_be_focused()
    expect(page.locator("#listing-title")).to_have_text(name)
    keyboard.press("Shift+Tab")
    while not focused.evaluate("node => node.matches('.back')"):
        keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    expect(page.locator(".card a").first).to_be_focused()


@pytest.mark.parametrize("view", ["results", "listing", "sell"])
def test_every_control_has_a_name(page, listing, view):
    addresses = {"results": "/?q=good", "listing": f"/?listing={listing['product_id']}", "sell": "/?view=sell"}
    page.goto(addresses[view])
    ready = {"results": "#results .card a", "listing": ".similar .card a", "sell": "textarea"}
    expect(page.locator(ready[view]).first).to_be_visible()
    unnamed = page.locator("main").get_by_role("button", name=re.compile("^$"))
    for role in ("link", "textbox", "searchbox", "combobox", "spinbutton"):
        unnamed = unnamed.or_(page.locator("main").get_by_role(role, name=re.compile("^$")))
    assert unnamed.count() == 0


@pytest.mark.parametrize(("page", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], indirect=["page"])
def test_no_view_breaks_a_rule_of_accessibility(page, served, listing, problems, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def look(name):
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"

    page.goto("/")
    expect(page.get_by_role("region", name="Or look around")).to_be_visible()
    look("first page")
    choose_photo(page, served.test_photo)
    open_filters(page)
    expect(settled(page).first).to_be_visible()
    look("results")
    page.goto("/?q=good&min_price=9000000")
    expect(page.locator("#results")).to_contain_text("No listing matches")
    look("nothing found")
    page.goto(f"/?listing={listing['product_id']}")
    expect(page.locator(".similar .card").first).to_be_visible()
    look("listing")
    page.goto(f"/?view=sell&q={listing['name']}")
    expect(page.get_by_role("region", name="Price")).to_be_visible()
    look("sell")
    page.goto("/?q=bed&min_price=9&max_price=3")
    expect(page.get_by_role("alert").filter(has_text="min_price 9 is above max_price 3")).to_be_visible()
    look("error")
    assert problems == ["422 /search"]
    problems.clear()


def test_the_description_of_the_api_is_shown_without_another_host(page):
    page.goto("/docs")
    expect(page.get_by_text("/predict/similar_images")).to_be_visible()
    expect(page.get_by_role("heading", name="Marketplace recommendations")).to_be_visible()
