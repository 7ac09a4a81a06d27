import os
import re
import shutil
from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

KEY = "a-key-of-twenty-four-chr"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LAUNCH_FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
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
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=LAUNCH_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser, served):
    context = browser.new_context(viewport=DESKTOP, base_url=served.url, locale="en-GB", reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT_MS)
    return context


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


def is_phone(page):
    return page.viewport_size == PHONE


def open_filters(page):
    if is_phone(page):  # where they are a sheet
        page.get_by_role("button", name="Filters").click()
        expect(page.get_by_role("dialog", name="Filters")).to_be_visible()


def close_filters(page):
    if is_phone(page):
        page.get_by_role("button", name="Show results").click()
        expect(page.get_by_role("dialog", name="Filters")).to_be_hidden()


def settled(page, results="#results"):
    """The results, once the newest request is answered; the page marks them busy before an action returns."""
    expect(page.locator(results)).to_have_attribute("aria-busy", "false")
    return page.locator(f"{results} .card")


def status_of(page):
    return page.locator("#search-status")


def listing_ids(page, results="#results"):
    settled(page, results)
    return page.locator(f"{results} .card a").evaluate_all("links => links.map((link) => link.dataset.listing)")


def search(page, words):
    page.get_by_label("Words to look for").fill(words)
    page.get_by_role("button", name="Search", exact=True).click()
    return settled(page)


def choose_photo(page, path):
    page.locator(".searchbar").get_by_role("button", name="Search by photo").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("dialog", name="Search by photo").get_by_text("Choose a photo").click()
    chooser.value.set_files(path)
    expect(page.locator("#search-view")).to_be_visible()


def change_results(page, **changes):
    """Searches for words are answered with other fields."""

    def change(route):
        answer = route.fetch().json()
        results = [result | changes.get("result", {}) for result in answer["results"]]
        route.fulfill(json=answer | {"results": results} | {name: value for name, value in changes.items() if name != "result"})

    page.route("**/search?*", change)


def answer_with(answer):
    return lambda route: route.fulfill(json=answer)


def query_of(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


# Finding


@at_both_widths
def test_words_find_listings_and_are_marked_in_their_titles(page, listing):
    page.goto("/")
    cards = search(page, listing["name"])
    assert listing_ids(page)[0] == listing["product_id"]
    answer = page.request.get("/search", params={"q": listing["name"]}).json()
    expect(status_of(page)).to_have_text(f"{answer['total']} listing{'s' * (answer['total'] != 1)} for “{listing['name']}”")
    expect(cards.first).to_contain_text(f"£{listing['price']:,.2f}".removesuffix(".00"))
    expect(cards.first).to_contain_text(listing["town"])
    marked = {text.lower() for text in cards.first.locator("mark").all_inner_texts()}
    assert marked and marked <= set(listing["name"].lower().split())


def test_cards_stand_in_two_columns_on_a_phone_and_each_photo_fills_its_square(page):
    page.set_viewport_size(PHONE)
    page.goto("/?q=good")
    cards = settled(page)
    cards.nth(1).wait_for()
    first, second = cards.nth(0).bounding_box(), cards.nth(1).bounding_box()
    assert first["y"] == second["y"] and first["x"] + first["width"] < second["x"]
    photo = cards.first.locator("img")
    assert photo.evaluate("image => getComputedStyle(image).objectFit") == "cover"
    box = photo.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert cards.first.locator("h2").evaluate("title => title.clientHeight < 2 * parseFloat(getComputedStyle(title).lineHeight)")


def test_the_search_stays_in_sight_on_a_phone(page):
    page.set_viewport_size(PHONE)
    page.goto("/?min_price=1")
    settled(page).nth(23).wait_for()
    page.evaluate("scrollTo(0, 1200)")
    expect(page.get_by_label("Words to look for")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("link", name="Sell")).not_to_be_in_viewport()


def test_nothing_jumps_when_photos_arrive(page):
    page.route("**/images/**", lambda route: None)
    page.goto("/?q=good", wait_until="domcontentloaded")
    before = settled(page).first.bounding_box()
    page.unroute("**/images/**")
    page.goto("/?q=good")
    settled(page).first.locator("img").evaluate("image => image.decode()")
    assert settled(page).first.bounding_box() == before


@at_both_widths
def test_a_chosen_photo_finds_its_own_listing_and_words_can_be_added(page, served):
    page.goto("/")
    choose_photo(page, served.test_photo)
    expect(status_of(page)).to_have_text(re.compile(r"^\d+ close match(es)? for your photo$"))
    expect(page.get_by_role("img", name="The photo that is looked for")).to_be_visible()
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": served.test_photo.read_bytes()}
    answer = page.request.post("/predict/similar_images", multipart={"image": photo}).json()["results"]
    assert listing_ids(page)[0] == answer[0]["product_id"]
    search(page, "good condition")
    expect(status_of(page)).to_contain_text("your photo and “good condition”")
    assert set(query_of(page)) == {"q", "photo"}
    page.get_by_role("button", name="Remove the photo").first.click()
    expect(status_of(page)).to_contain_text("for “good condition”")
    assert query_of(page) == {"q": "good condition"}


def test_a_phone_offers_its_camera(browser, served):
    context = browser.new_context(viewport=PHONE, base_url=served.url, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto("/")
    page.locator(".searchbar").get_by_role("button", name="Search by photo").tap()
    sheet = page.get_by_role("dialog", name="Search by photo")
    expect(sheet.get_by_text("Take a photo")).to_be_visible()
    assert sheet.locator("input").first.get_attribute("capture") == "environment"
    box = sheet.bounding_box()
    assert box["y"] + box["height"] == PHONE["height"] and box["width"] == PHONE["width"]
    context.close()


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
    expect(status_of(page)).to_have_text(re.compile(r"^\d+ close match(es)? for your photo$"))


@at_both_widths
def test_a_photo_search_survives_a_reload_and_only_its_own_browser_knows_the_photo(page, browser, served):
    page.goto("/")
    choose_photo(page, served.test_photo)
    ids = listing_ids(page)
    settled(page).first.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_be_focused()
    page.go_back()
    assert listing_ids(page) == ids
    page.reload()
    assert listing_ids(page) == ids
    expect(page.get_by_role("img", name="The photo that is looked for")).to_be_visible()
    other = browser.new_context(base_url=served.url)
    elsewhere = other.new_page()
    elsewhere.goto(page.url)
    expect(elsewhere.get_by_role("alert").filter(has_text="choose it again")).to_be_visible()
    other.close()


@at_both_widths
def test_a_part_of_the_photo_can_be_the_question(page, served):
    sent = []
    page.on("request", lambda request: request.url.endswith("/predict/similar_images") and sent.append(request))
    page.goto("/")
    choose_photo(page, served.test_photo)
    settled(page)
    entries = page.evaluate("history.length")
    frame = page.get_by_role("group", name="Part of the photo")
    box = frame.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 6, box["y"] + box["height"] - 6)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    expect(page).to_have_url(re.compile("crop="))
    settled(page)
    shares = [float(share) for share in query_of(page)["crop"].split(",")]
    assert shares[:2] == [0, 0] and shares[2:] == pytest.approx([0.5, 0.5], abs=0.1)
    assert len(sent) == 2 and page.evaluate("history.length") == entries
    frame.press("ArrowRight")
    frame.press("Shift+ArrowDown")
    settled(page)
    left, _, _, height = [float(share) for share in query_of(page)["crop"].split(",")]
    assert left == pytest.approx(0.04) and height == pytest.approx(shares[3] + 0.04, abs=0.002)
    expect(frame).to_be_focused()
    page.reload()
    settled(page)
    expect(frame).to_be_visible()
    page.get_by_role("link", name="Whole photo").click()
    settled(page)
    assert set(query_of(page)) == {"photo"}


@at_both_widths
def test_a_listing_s_own_photo_can_be_the_question(page, listing):
    page.goto(f"/?listing={listing['product_id']}")
    page.get_by_role("link", name="Search with this photo").click()
    assert listing["product_id"] == listing_ids(page)[0]
    expect(status_of(page)).to_contain_text("for this photo")
    assert set(query_of(page)) == {"like"}
    page.reload()
    assert listing["product_id"] == listing_ids(page)[0]


def test_a_photo_to_which_nothing_is_close_is_told_and_the_nearest_three_are_shown_apart(page, served):
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": served.test_photo.read_bytes()}
    answer = page.request.post("/predict/similar_images", multipart={"image": photo, "k": "24"}).json()
    page.route(
        "**/predict/similar_images",
        lambda route: route.fulfill(json=answer | {"results": [result | {"close": False} for result in answer["results"]]}),
    )
    page.goto("/")
    choose_photo(page, served.test_photo)
    expect(status_of(page)).to_have_text("Nothing close to your photo: these come nearest")
    expect(page.get_by_role("region", name="These come nearest").locator(".card")).to_have_count(3)
    page.get_by_role("button", name="Show what is less alike too").click()
    settled(page).nth(23).wait_for()
    expect(settled(page).nth(3).get_by_role("link")).to_be_focused()


def test_what_is_hardly_alike_is_not_asked_for(page, served):
    page.add_init_script(
        """const ask = fetch;
        window.sent = [];
        window.fetch = (path, options) => {
            if (options?.body) window.sent.push(options.body.get("min_score"));
            return ask(path, options);
        };"""
    )
    page.goto("/")
    choose_photo(page, served.test_photo)
    settled(page).first.wait_for()
    assert page.evaluate("window.sent") == ["0.05"]


# Filters, sorting, more


@at_both_widths
def test_every_filter_value_tells_how_many_listings_it_leaves(page, served, listing):
    page.goto("/?min_price=1")
    settled(page)
    open_filters(page)
    main, *levels = listing["category"].split(" / ")
    for path, name in ((main, main), (f"{main} / {levels[0]}", levels[0])):
        choice = page.locator("#category-choices").get_by_role("link", name=re.compile(rf"^{re.escape(name)} ?\d+$"))
        count = int(choice.locator(".count").inner_text())
        choice.click()
        expect(status_of(page)).to_have_text(f"{count} listing{'s' * (count != 1)}")
        assert query_of(page)["category"] == path
    close_filters(page)
    products = served.products.set_index("product_id")
    wanted = products.index[(products["category"] + " / ").str.startswith(f"{main} / {levels[0]} / ") & (products["price"] >= 1)]
    assert set(listing_ids(page)) == set(wanted)


@at_both_widths
def test_typed_filters_narrow_the_results_and_chips_take_them_away(page, served, listing):
    products = served.products.set_index("product_id")
    page.goto("/?sort=newest")
    settled(page)
    open_filters(page)
    page.get_by_label("Lowest price").fill("1")
    page.get_by_label("Highest price").fill("2,000")
    page.get_by_label("Town or county").fill(listing["county"])
    page.get_by_label("Town or county").press("Enter")
    expect(page).to_have_url(re.compile("location="))
    if is_phone(page):
        expect(page.get_by_role("dialog", name="Filters")).to_be_hidden()
    nearby = products[(products["county"] == listing["county"]) | (products["town"] == listing["county"])]
    assert set(listing_ids(page)) == set(nearby.index[nearby["price"].between(1, 2000)])
    chips = page.get_by_role("list", name="Filters that are set")
    expect(chips.get_by_role("link")).to_have_text(["£1 – £2,000", listing["county"]])
    chips.get_by_role("link", name=f"Remove the filter {listing['county']}").click()
    expect(chips.get_by_role("link")).to_have_count(1)
    assert query_of(page) == {"min_price": "1", "max_price": "2000", "sort": "newest"}
    open_filters(page)
    page.get_by_role("button", name="Clear all").click()
    close_filters(page)
    expect(chips.get_by_role("link")).to_have_count(0)


@pytest.mark.parametrize(
    ("typed", "asked"), [("10000", "10000"), ("£1,200.50", "1200.50"), ("1.200,50", "1200.50"), ("12,5", "12.5"), ("cheap", "")]
)
def test_a_price_is_read_as_people_type_it(page, typed, asked):
    page.goto("/?sort=newest")
    settled(page)
    box = page.get_by_label("Highest price")
    box.fill(typed)
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    box.press("Enter")
    settled(page)
    expect(box).to_have_value(asked)
    assert query_of(page).get("max_price", "") == asked


@at_both_widths
def test_prices_the_wrong_way_round_are_told_and_can_be_swapped(page):
    page.goto("/?sort=newest")
    settled(page)
    open_filters(page)
    page.get_by_label("Highest price").fill("10")
    page.get_by_label("Lowest price").fill("50")
    page.get_by_label("Lowest price").press("Enter")
    expect(page.get_by_role("alert").filter(has_text="The lowest price is above the highest.")).to_be_visible()
    page.get_by_role("button", name="Swap them").click()
    expect(page).to_have_url(re.compile("min_price=10&max_price=50"))


def test_filters_that_leave_nothing_can_be_widened_one_by_one(page, listing):
    page.goto(f"/?{urlencode({'category': listing['category'], 'min_price': '9000000', 'location': listing['county']})}")
    expect(status_of(page)).to_have_text("Nothing found")
    ways = page.locator("#results .ways-out").get_by_role("link")
    above = listing["category"].split(" / ")[-2]
    expect(ways).to_have_text(["Any price", "Anywhere", f"All of {above}", "Search without filters"])
    ways.first.click()
    assert listing["product_id"] in listing_ids(page)


@at_both_widths
@pytest.mark.parametrize(
    ("name", "sort"), [("Price: low to high", "price_up"), ("Price: high to low", "price_down"), ("Newest", "newest")]
)
def test_results_can_be_sorted(page, name, sort):
    page.goto("/?q=good")
    settled(page)
    page.get_by_label("Sort by").select_option(name)
    expect(page).to_have_url(re.compile(f"sort={sort}"))
    answer = page.request.get("/search", params={"q": "good", "sort": sort, "k": 24}).json()["results"]
    assert listing_ids(page)[:24] == [result["product_id"] for result in answer]
    page.get_by_label("Sort by").select_option("Best match")
    expect(page).to_have_url(re.compile(r"\?q=good$"))


@at_both_widths
def test_more_listings_come_with_scrolling_and_in_one_entry_of_the_history(page):
    asked = []
    page.on("request", lambda request: "/search" in request.url and asked.append(parse_qs(urlsplit(request.url).query)))
    page.goto("/?min_price=1")
    cards = settled(page)
    cards.nth(23).wait_for()
    first, entries = listing_ids(page)[:24], page.evaluate("history.length")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    cards.nth(47).wait_for()
    ids = listing_ids(page)
    assert ids[:24] == first and len(set(ids)) == len(ids)
    assert page.evaluate("history.length") == entries
    assert [(query["k"], query.get("offset"), query.get("counts")) for query in asked][:2] == [
        (["24"], None, ["true"]),
        (["24"], ["24"], None),
    ]
    scroll = page.evaluate("scrollY")
    page.reload()
    cards.nth(47).wait_for()
    assert listing_ids(page)[:48] == ids[:48]
    page.wait_for_function("scroll => Math.abs(scrollY - scroll) < 5", arg=scroll)


def test_scrolling_alone_does_not_go_on_for_ever(page):
    def endless(route):
        query = parse_qs(urlsplit(route.request.url).query)
        offset, k = int(query.get("offset", ["0"])[0]), int(query["k"][0])
        answer = page.request.get("/search", params={"q": "good", "k": 1}).json()
        results = [answer["results"][0] | {"product_id": f"listing-{at}"} for at in range(offset, offset + k)]
        route.fulfill(json=answer | {"results": results, "total": 1000, "total_is_at_least": True})

    page.route("**/search?*", endless)
    page.goto("/?q=good")
    cards = settled(page)
    expect(status_of(page)).to_have_text("1,000+ listings for “good”")
    for n in (24, 48, 72, 96):
        cards.nth(n - 1).wait_for()
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
    more = page.get_by_role("button", name="Show more")
    expect(more).to_be_visible()
    expect(cards).to_have_count(96)
    more.focus()
    more.press("Enter")
    expect(cards).to_have_count(120)
    expect(cards.nth(96).get_by_role("link")).to_be_focused()
    page.evaluate("history.replaceState({ shown: 480 }, '')")
    page.reload()
    expect(cards).to_have_count(480)
    expect(page.locator("#results")).to_contain_text("narrow it with words or filters")
    expect(more).to_have_count(0)


# What each result tells


def test_listings_folded_into_one_are_counted(page):
    def fold(route):
        answer = route.fetch().json()
        results = [result | {"duplicates": 2 * at} for at, result in enumerate(answer["results"])]
        route.fulfill(json=answer | {"results": results})

    page.route("**/search?*", fold)
    page.goto("/?q=good")
    cards = settled(page)
    expect(cards.nth(1)).to_contain_text("Listed 3 times")
    expect(cards.nth(0)).not_to_contain_text("Listed")


@at_both_widths
def test_what_comes_nearest_is_shown_apart_where_nothing_is_close(page):
    def empty(route):
        answer = route.fetch().json()
        nearest = [result | {"close": False} for result in answer["results"][:3]]
        route.fulfill(json=answer | {"results": [], "total": 0, "nearest": nearest})

    page.route("**/search?*", empty)
    page.goto("/?q=good+condition")
    expect(status_of(page)).to_have_text("Nothing close to “good condition”: these come nearest")
    nearest = page.get_by_role("region", name="These come nearest")
    expect(nearest.locator(".card")).to_have_count(3)
    expect(page.locator("#results .empty")).to_contain_text("Check the spelling")
    expect(page.locator("#results .ways-out").get_by_role("link")).to_have_text(["“good”", "“condition”"])
    assert Axe().run(page).violations_count == 0
    page.unroute("**/search?*")
    page.goto("/?q=zzzzqqqq")
    expect(status_of(page)).to_contain_text("Nothing close to “zzzzqqqq”")


@at_both_widths
def test_a_correction_is_told_once_with_what_was_typed(page):
    page.goto("/?q=guitarr")
    cards = settled(page)
    expect(page.locator(".corrections")).to_have_text("Showing results for guitar (you typed “guitarr”).")
    assert not any("spelt" in card.inner_text() for card in cards.all() if card.locator("mark").count())
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


@pytest.mark.parametrize(
    ("marks", "reasons", "line"),
    [
        ([[0, 1]], ["has “good”", "same kind: Lamps", "near you"], ["near you"]),
        ([], ["has “good”", "same kind: Lamps"], ["has “good”"]),
        ([[0, 1]], ["has “good”", "same kind: Lamps"], []),
    ],
)
def test_one_line_says_why_and_only_what_is_not_plain_already(page, marks, reasons, line):
    def change(route):
        answer = route.fetch().json()
        first, *others = [result | {"reasons": ["same kind: Lamps"], "name_marks": []} for result in answer["results"]]
        assert len(others) > 3
        route.fulfill(json=answer | {"results": [first | {"reasons": reasons, "name_marks": marks}, *others]})

    page.route("**/search?*", change)
    page.goto("/?q=good")
    card = settled(page).first
    card.wait_for()
    assert card.locator(".why").all_inner_texts() == line
    assert not re.search(r"\d+%", page.locator("#results").inner_text())


@pytest.mark.parametrize(
    ("price", "plausible", "told"),
    [(1234567.0, False, "£1,234,567price unlikely"), (0.0, False, "Free"), (12.5, True, "£12.50"), (None, False, "No price")],
)
def test_a_price_is_told_as_what_it_means(page, price, plausible, told):
    change_results(page, result={"price": price, "price_plausible": plausible})
    page.goto("/?q=good")
    expect(settled(page).first.locator(".price")).to_have_text(told)


def test_prices_and_numbers_are_written_as_in_the_browser_s_country(browser, served):
    context = browser.new_context(base_url=served.url, locale="de-DE")
    page = context.new_page()
    change_results(page, result={"price": 1234.5, "currency": "EUR"}, total=1000, total_is_at_least=True)
    page.goto("/?q=good")
    expect(settled(page).first.locator(".price")).to_have_text(re.compile(r"^1\.234,50\s€$"))
    expect(status_of(page)).to_contain_text("1.000+ listings")
    context.close()


# The first page


@at_both_widths
def test_the_first_page_shows_categories_with_pictures_and_what_is_new(page, served, listing):
    products = served.products.set_index("product_id")
    page.goto("/")
    tiles = page.get_by_role("region", name="Categories").get_by_role("link")
    counts = products["main_category"].value_counts()
    expect(tiles).to_have_count(len(counts))
    tile = tiles.filter(has_text=listing["main_category"])
    expect(tile.locator(".count")).to_have_text(str(counts[listing["main_category"]]))
    tile.scroll_into_view_if_needed()
    expect(tile.locator("img, .no-photo")).to_be_visible()
    newest = page.get_by_role("region", name="Just in").locator(".card a")
    expect(newest).to_have_count(24)
    ids = newest.evaluate_all("links => links.map((link) => link.dataset.listing)")
    assert list(products["posted_on"][ids]) == sorted(products["posted_on"], reverse=True)[:24]
    tile.click()
    ids = listing_ids(page)
    wanted = products.query("main_category == @listing.main_category")
    assert set(ids) == set(wanted.index) and query_of(page) == {"category": listing["main_category"]}
    assert list(products["posted_on"][ids]) == sorted(wanted["posted_on"], reverse=True)
    expect(page.get_by_label("Sort by")).to_have_value("newest")
    settled(page).first.get_by_role("link").click()
    page.get_by_role("link", name="Back to the results").click()
    assert listing_ids(page) == ids


# One listing


@at_both_widths
def test_a_listing_shows_its_photos_its_description_and_more_like_it(page, listing):
    page.goto("/")
    search(page, listing["name"])
    page.get_by_role("link", name=listing["name"]).first.click()
    view = page.get_by_role("article", name=listing["name"])
    expect(view.get_by_role("heading", name=listing["name"])).to_be_focused()
    assert query_of(page)["listing"] == listing["product_id"]
    assert page.title() == f"{listing['name']} – Marketplace"
    assert view.locator(".description").inner_text().split() == listing["description"].split()
    expect(view.get_by_role("link", name=", ".join(filter(None, [listing["town"], listing["county"]])))).to_be_visible()
    expect(view.get_by_role("navigation", name="Category").get_by_role("link")).to_have_text(listing["category"].split(" / "))
    view.get_by_text("Why this was found").click()
    expect(view.locator(".why-found")).to_contain_text("has “")
    similar = view.get_by_role("region", name="More like this").locator(".card")
    expect(similar.first).to_be_visible()
    ids = listing_ids(page, "#listing-view")
    assert listing["product_id"] not in ids
    similar.first.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_be_focused()
    assert query_of(page)["listing"] == ids[0]
    view = page.get_by_role("article")
    view.get_by_role("navigation", name="Category").get_by_role("link").first.click()
    assert set(query_of(page)) == {"category"} and listing_ids(page)


@at_both_widths
def test_the_photos_of_a_listing_are_stepped_through_and_seen_large(page, listing):
    page.goto(f"/?listing={listing['product_id']}")
    counter, n = page.locator(".counter"), listing["photos"]
    expect(counter).to_have_text(f"1 / {n}")
    expect(page.get_by_role("img", name=f"Photo 1 of {n}")).to_be_in_viewport()
    page.get_by_role("button", name="Next photo").click()
    expect(counter).to_have_text(f"2 / {n}")
    expect(page.get_by_role("img", name=f"Photo 2 of {n}")).to_be_in_viewport()
    page.get_by_role("list", name="Photos").press("ArrowLeft")
    expect(counter).to_have_text(f"1 / {n}")
    page.get_by_role("button", name="Show photo 2").click()
    expect(page.get_by_role("button", name="Show photo 2")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="See the photo large").click()
    large = page.get_by_role("dialog", name=f"Photo 2 of {n}")
    photo = large.get_by_role("button", name="Closer, or whole")
    whole = photo.bounding_box()["width"]
    assert whole == pytest.approx(page.viewport_size["width"], abs=20)
    photo.click()
    assert photo.bounding_box()["width"] > 2 * whole
    page.keyboard.press("Escape")
    expect(large).to_have_count(0)
    expect(page.get_by_role("button", name="See the photo large")).to_be_focused()


@pytest.mark.parametrize(
    ("price", "verdict", "is_informative", "told"),
    [
        (30, "likely", True, "In the usual range for such things: £20 – £60"),
        (90, "high", True, "Higher than usual for such things: £20 – £60"),
        (5, "low", True, "Lower than usual for such things: £20 – £60"),
        (None, None, True, "Such things usually cost £20 – £60"),
        (30, None, False, None),
    ],
)
def test_a_listing_says_whether_its_price_is_likely(page, listing, price, verdict, is_informative, told):
    def change(route):
        price_range = {"low": 20, "median": 40, "high": 60, "is_informative": is_informative, "currency": "GBP"}
        told = {"price": price, "price_range": price_range, "price_verdict": verdict}
        route.fulfill(json=route.fetch().json() | told)

    page.route(re.compile(r"/products/[\w-]+$"), change)
    page.goto(f"/?listing={listing['product_id']}")
    expect(page.get_by_role("heading", name="Description")).to_be_visible()
    usual = page.get_by_role("region", name="Usual price")
    if told is None:
        expect(usual).to_have_count(0)
        return
    expect(usual.locator("> p")).to_have_text(told)
    band, line = usual.locator(".band").bounding_box(), usual.locator(".line").bounding_box()
    assert line["x"] < band["x"] < band["x"] + band["width"] < line["x"] + line["width"]


@pytest.mark.parametrize(
    ("fields", "title"),
    [
        (("duplicates", "duplicate_listings"), "Listed 2 times"),
        (("same_seller", "same_seller_listings"), "From the same seller"),
    ],
)
def test_the_same_offer_and_the_same_seller_s_listings_are_linked(page, listing, fields, title):
    other = page.request.get("/search", params={"k": 1}).json()["results"][0]
    related = dict(zip(fields, (1, [other]), strict=True))
    page.route(
        re.compile(r"/products/[\w-]+$"),
        lambda route: route.fulfill(json=route.fetch().json() | {"duplicates": 0, "duplicate_listings": []} | related),
    )
    page.goto(f"/?listing={listing['product_id']}")
    page.get_by_role("region", name=title).get_by_role("link").click()
    expect(page).to_have_url(re.compile(f"listing={other['product_id']}"))


# Selling


@at_both_widths
def test_selling_shows_a_category_a_price_and_listings_like_it(page, served, listing):
    page.goto("/")
    page.get_by_role("link", name="Sell").click()
    page.get_by_role("button", name="Estimate").click()
    expect(page.get_by_role("alert").filter(has_text="Add a photo, some words, or both.")).to_be_visible()
    page.get_by_label("Describe it").fill(listing["name"])
    page.get_by_role("button", name="Estimate").click()
    category = page.get_by_role("region", name="Category")
    likely = category.get_by_role("radio")
    expect(likely.first).to_be_checked()
    comparable = page.get_by_role("region", name="Listings like it")
    expect(comparable.locator(".card a").first).to_be_visible()
    page.get_by_label("Your price").fill("0.01")
    expect(page.locator("#price-place")).to_have_text(re.compile(r"^(Cheaper than (\d+) of \2 listings like it\.)?$"))
    likely.nth(1).check()
    expect(comparable.locator(".card a, p").first).to_be_visible()
    category.get_by_label("Another category").select_option(listing["main_category"])
    expect(likely.nth(1)).not_to_be_checked()
    expect(comparable.locator(".card a").first).to_be_visible()
    held = []
    page.route("**/predict/listing", lambda route: held.append(route))  # or the answer may come before the status is read
    with page.expect_file_chooser() as chooser:
        page.locator("#sell-form").get_by_text("Choose a photo").click()
    chooser.value.set_files(served.test_photo)
    expect(page.locator("#sell-status")).to_have_text("Looking at the photo…")
    page.wait_for_function("document.querySelector('#sell-form .picked').hidden === false")
    held[0].continue_()
    page.unroute("**/predict/listing")
    expect(page.locator("#prediction")).to_have_attribute("aria-busy", "false")
    page.get_by_role("link", name="See all listings like it").click()
    expect(status_of(page)).to_contain_text("your photo and")


@pytest.mark.parametrize(
    ("low", "high", "is_informative", "told"), [(8, 538, False, "Hard to tell"), (20, 60, True, "£20 – £60")]
)
def test_a_price_range_that_says_nothing_is_told_as_such(page, low, high, is_informative, told):
    def change(route):
        price = {"low": low, "median": 40, "high": high, "is_informative": is_informative, "currency": "GBP"}
        route.fulfill(json=route.fetch().json() | {"price": price})

    page.route("**/predict/listing", change)
    page.goto("/?view=sell&q=lamp")
    expect(page.locator(".range-text")).to_have_text(told)
    expect(page.get_by_label("Your price")).to_have_value("40" if told != "Hard to tell" else "")


# Moderating


@pytest.fixture
def key(served):
    """The headers that carry the key, which the service has for one test."""
    state, settings = served.app.state, served.app.state.settings
    state.settings = replace(settings, api_key=KEY)
    yield {"X-API-Key": KEY}
    state.settings = settings


def open_moderation(page, key):
    page.goto("/moderate")
    page.get_by_label("The service’s key").fill(key)
    page.get_by_role("button", name="Open").click()


@at_both_widths
def test_moderators_see_every_list_with_its_counts_and_can_export_it(page, key):
    open_moderation(page, KEY)
    lists = page.get_by_role("navigation", name="Lists")
    counts = page.request.get("/moderate/counts", headers=key).json()["lists"]
    expect(lists.locator("ul > li > .choice")).to_have_count(len(counts) + sum(len(one["reasons"]) for one in counts))
    name = {"rejected-rows": "Rejected rows", "rejected-photos": "Rejected photos", "implausible-prices": "Implausible prices"}
    for one in counts:
        if one["list"] not in name:
            continue
        lists.get_by_role("link", name=name[one["list"]]).click()
        expect(page.get_by_role("heading", level=2)).to_be_focused()
        expect(page.locator("#entries")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#list-status")).to_have_text(re.compile(rf"^{one['total']} entr(y|ies)$"))
        for reason, n in one["reasons"].items():
            shown = reason.replace("_", " ").capitalize()
            lists.locator(f"a[href='/moderate?list={one['list']}&reason={reason}']").click()
            expect(page.locator("#list-status")).to_have_text(re.compile(rf"^{n} entr(y|ies): {shown.lower()}$"))
            expect(page.locator(".cases > li")).to_have_count(min(n, 50))
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as CSV").click()
    asked = dict(list=query_of(page)["list"], reason=query_of(page)["reason"])
    path = f"/moderate/{asked['list']}"
    whole = page.request.get(path, params={"reason": asked["reason"], "format": "csv"}, headers=key)
    assert download.value.path().read_bytes() == whole.body()
    assert download.value.suggested_filename == f"{asked['list']}-{asked['reason']}.csv"
    assert Axe().run(page).violations_count == 0


@at_both_widths
def test_listings_of_one_offer_are_side_by_side_and_opinions_are_told(page, key):
    listings = page.request.get("/search", params={"k": 2}).json()["results"]
    group = [
        {"reason": "same_offer", "listing": one, "hidden": False, "details": {"group": 0, "listings": 2}} for one in listings
    ]
    odd = {"by_words": "Toys", "probability_by_words": 0.9, "by_photo": "Lamps", "probability_by_photo": 0.8}
    disagreement = {"reason": "words_and_photo", "listing": listings[0], "hidden": True, "details": odd}
    for name, results in (("duplicates", group), ("category-disagreements", [disagreement])):
        answer = {"list": name, "total": len(results), "reasons": {}, "results": results}
        page.route(f"**/moderate/{name}?*", answer_with(answer))
    open_moderation(page, KEY)
    page.get_by_role("link", name="The same offer again").click()
    cases = page.locator(".side-by-side .case")
    expect(cases).to_have_count(2)
    first, second = cases.nth(0).bounding_box(), cases.nth(1).bounding_box()
    assert (first["y"] == second["y"]) == (not is_phone(page))
    page.get_by_role("link", name="Words and photo disagree").click()
    expect(page.locator(".cases")).to_contain_text("Toys (90%)")
    expect(page.locator(".cases")).to_contain_text("Lamps (80%)")
    expect(page.locator(".cases")).to_contain_text("Taken down")
    assert Axe().run(page).violations_count == 0


def test_a_wrong_key_is_told_and_the_right_one_is_kept_until_it_is_forgotten(page, problems, key):
    open_moderation(page, "another-key-of-no-use-at-all")
    expect(page.get_by_role("alert")).to_have_text("That is not the key.")
    assert problems == ["401 /moderate/counts"]
    problems.clear()
    open_moderation(page, KEY)
    lists = page.get_by_role("navigation", name="Lists")
    expect(lists).to_be_visible()
    page.reload()
    expect(lists).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(lists).to_be_hidden()
    page.reload()
    expect(page.get_by_label("The service’s key")).to_be_visible()


# What goes wrong


@pytest.mark.parametrize("address", ["/", "/?view=sell"])
def test_a_text_file_as_photo_is_refused_in_words(page, problems, tmp_path, address):
    not_a_photo = tmp_path / "notes.txt"
    not_a_photo.write_text("a shopping list")
    page.goto(address)
    selling = "sell" in address
    page.locator(f"{'#sell-form' if selling else '#photo-ways'} input[type=file]").last.set_input_files(not_a_photo)
    sentence = page.get_by_role("alert").filter(has_text="That file is not a photo: choose a JPEG, PNG, WebP or HEIC picture.")
    expect(sentence).to_be_visible()
    assert problems == ["400 /predict/listing" if selling else "400 /predict/similar_images"]
    problems.clear()
    page.get_by_role("button", name="Remove the photo").locator("visible=true").click()
    expect(sentence).to_have_count(0)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("/?q=lamp&category=Nothing+here", "There is no such category any more: choose another."),
        ("/?q=lamp&location=Zzyzx", "Nothing is for sale in “Zzyzx”: try a town or county nearby."),
        ("/?listing=no-such-listing", "This listing is no longer here: it may have been sold or taken down."),
    ],
)
def test_what_the_api_refuses_is_told_in_a_shopper_s_words(page, problems, address, sentence):
    page.goto(address)
    expect(page.get_by_role("alert").filter(has_text=sentence)).to_be_visible()
    assert len(problems) == 1 and re.match("4(04|22) ", problems.pop())


@at_both_widths
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            {"status": 503, "json": {"detail": "too much is being sent at once: try again in a second"}},
            "Many people are searching",
        ),
        ({"status": 500, "body": "Internal Server Error"}, "Something went wrong on our side (status 500): try again."),
        (None, "The shop cannot be reached: check your connection, then try again."),
    ],
)
def test_a_failure_keeps_the_results_and_can_be_tried_again(page, problems, answer, sentence):
    page.goto("/?q=good")
    ids = listing_ids(page)
    page.route("**/search?*", lambda route: route.fulfill(**answer) if answer else route.abort())
    page.get_by_label("Words to look for").fill("condition")
    page.get_by_label("Words to look for").press("Enter")
    alert = page.get_by_role("alert").filter(has_text=sentence)
    expect(alert).to_be_visible()
    assert listing_ids(page) == ids
    assert len(problems) == 1
    problems.clear()
    page.unroute("**/search?*")
    alert.get_by_role("button", name="Try again").click()
    expect(status_of(page)).to_contain_text("for “condition”")
    expect(alert).to_have_count(0)


def test_a_new_search_gives_the_old_one_up_and_waiting_is_shown(page):
    held = []
    page.route("**/search?q=first*", lambda route: held.append(route))
    page.goto("/?q=first")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    expect(status_of(page)).to_have_text("Looking…")
    with page.expect_event("requestfailed", lambda request: "q=first" in request.url):
        search(page, "good")
    expect(status_of(page)).to_contain_text("for “good”")
    assert held


def test_a_shared_address_restores_the_search_and_back_and_forward_work(page, listing):
    shared = {"q": listing["name"], "category": listing["main_category"], "max_price": "5000", "location": listing["county"]}
    page.goto("/")
    page.goto(f"/?{urlencode(shared)}")
    ids = listing_ids(page)
    answer = page.request.get("/search", params=shared | {"k": 24}).json()
    assert ids == [result["product_id"] for result in answer["results"]] and ids
    expect(page.get_by_label("Words to look for")).to_have_value(listing["name"])
    expect(page.get_by_label("Highest price")).to_have_value("5000")
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


def test_hostile_listing_text_is_shown_as_text(page):
    hostile = {"name": HOSTILE, "name_marks": [], "category": f"{HOSTILE} / {HOSTILE}", "town": HOSTILE, "county": HOSTILE}
    outside = {"product_id": '"><b>', "image_id": "//elsewhere.invalid/x", "price": 0, "price_plausible": False}
    outside["reasons"] = [HOSTILE]

    def poison_listing(route):
        photos = [{"image_id": "javascript:window.hacked = true"}]
        product = {**outside, **hostile, "currency": "GBP", "description": HOSTILE, "posted_on": HOSTILE, "photos": photos}
        route.fulfill(json={"results": []} if "/similar" in route.request.url else product)

    change_results(page, result=hostile | outside)
    page.route("**/products/**", poison_listing)
    page.goto("/?q=good")
    card = settled(page).first
    expect(card.get_by_role("link")).to_have_text(HOSTILE)
    expect(card).to_contain_text("Free")
    expect(card.get_by_role("img", name="No photo")).to_be_visible()
    card.get_by_role("link").click()
    expect(page.locator("#listing-title")).to_have_text(HOSTILE)
    expect(page.locator(".description")).to_have_text(HOSTILE)
    expect(page.locator("#listing-view")).to_contain_text("Nothing like it yet.")
    page.goto(f"/?{urlencode({'q': HOSTILE})}")
    expect(status_of(page)).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img[src*=elsewhere]").count() == 1  # the page's own module


def test_the_policy_of_the_page_forbids_script_from_text(page, problems):
    page.goto("/")
    assert page.evaluate("try { document.body.innerHTML = '<p>'; 'written' } catch (error) { error.name }") == "TypeError"
    assert len(problems) == 1 and "TrustedHTML" in problems.pop()
    assert page.locator("script:not([src]), style").count() == 0


# For everyone


def test_nothing_scrolls_sideways_on_a_phone(page, served, listing):
    page.set_viewport_size(PHONE)
    too_wide = "document.documentElement.scrollWidth - innerWidth"
    page.goto("/")
    expect(page.get_by_role("region", name="Just in").locator(".card a").first).to_be_visible()
    assert page.evaluate(too_wide) == 0
    choose_photo(page, served.test_photo)
    open_filters(page)
    assert page.evaluate(too_wide) == 0
    close_filters(page)
    page.goto(f"/?listing={listing['product_id']}")
    expect(page.locator(".similar .card a").first).to_be_visible()
    assert page.evaluate(too_wide) == 0
    page.goto(f"/?view=sell&q={listing['name']}")
    expect(page.locator("#prediction .card a").first).to_be_visible()
    assert page.evaluate(too_wide) == 0
    endless = {"name": "W" * 300, "name_marks": [], "town": "W" * 300, "price": 1e12, "price_plausible": False}
    change_results(page, result=endless | {"reasons": ["W" * 300]})
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


@at_both_widths
def test_the_keyboard_alone_finds_and_opens_a_listing(page, served, listing):
    page.on("filechooser", lambda chooser: chooser.set_files(served.test_photo))
    page.goto("/")
    keyboard, focused = page.keyboard, page.locator(":focus")

    def tab_to(wanted, limit=60):
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
    keyboard.press("/")
    expect(page.get_by_label("Words to look for")).to_be_focused()
    keyboard.press("Tab")
    expect(focused).to_have_attribute("aria-label", "Search by photo")
    keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Search by photo")).to_be_visible()
    tab_to("#photo-ways input[type=file]")
    keyboard.press("Enter")
    expect(status_of(page)).to_contain_text("for your photo")
    keyboard.press("/")
    keyboard.type(listing["name"])
    keyboard.press("Enter")
    expect(status_of(page)).to_contain_text(f"and “{listing['name']}”")
    settled(page)
    tab_to(".frame")
    assert focused.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    if is_phone(page):
        tab_to("#open-filters")
        keyboard.press("Enter")
        tab_to("#filters input[name=location]")
        keyboard.press("Escape")
        expect(page.locator("#open-filters")).to_be_focused()
    tab_to("#results .card a")
    assert page.locator("#results .card").first.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    name = focused.inner_text()
    keyboard.press("Enter")
    expect(page.locator("#listing-title")).to_be_focused()
    expect(page.locator("#listing-title")).to_have_text(name)
    keyboard.press("Shift+Tab")
    while not focused.evaluate("node => node.matches('.back')"):
        keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    expect(page.locator("#results .card a").first).to_be_focused()


@pytest.mark.parametrize(("page", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], indirect=["page"])
def test_no_view_breaks_a_rule_of_accessibility(page, served, listing, problems, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def look(name):
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        unnamed = page.get_by_role("button", name=re.compile("^$"))
        for role in ("link", "textbox", "searchbox", "combobox", "radio"):
            unnamed = unnamed.or_(page.get_by_role(role, name=re.compile("^$")))
        assert unnamed.count() == 0, name

    page.goto("/")
    expect(page.get_by_role("region", name="Just in").locator(".card a").first).to_be_visible()
    look("first page")
    page.locator(".searchbar").get_by_role("button", name="Search by photo").click()
    look("ways to give a photo")
    page.keyboard.press("Escape")
    choose_photo(page, served.test_photo)
    expect(settled(page).first).to_be_visible()
    look("photo")
    page.goto(f"/?{urlencode({'q': 'good', 'min_price': 1, 'category': listing['main_category']})}")
    settled(page)
    open_filters(page)
    look("filters")
    page.goto("/?q=good&min_price=9000000")
    expect(page.locator("#results")).to_contain_text("Nothing matches within these filters")
    look("nothing found")
    page.goto(f"/?listing={listing['product_id']}")
    expect(page.locator(".similar .card a").first).to_be_visible()
    look("listing")
    page.get_by_role("button", name="See the photo large").click()
    look("large photo")
    page.goto(f"/?view=sell&q={listing['name']}")
    expect(page.locator("#prediction .card a").first).to_be_visible()
    look("sell")
    page.goto("/?q=bed&category=Nothing+here")
    expect(page.get_by_role("alert").filter(has_text="There is no such category")).to_be_visible()
    look("error")
    assert problems == ["422 /search"]
    problems.clear()


def test_the_description_of_the_api_is_shown_without_another_host(page):
    page.goto("/docs")
    expect(page.get_by_text("/predict/similar_images")).to_be_visible()
    expect(page.get_by_role("heading", name="Marketplace recommendations")).to_be_visible()
