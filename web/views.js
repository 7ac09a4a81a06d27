// What the views show: cards and why they match, one listing, and an estimate.

import { formatCount, h, icon, link, photo, place, price } from "./elements.js";
import { isFiltered, withoutFilters } from "./history.js";
import { SEPARATOR } from "./query-form.js";

const LIKELY_CATEGORIES = 5;
const MOST_REASONS = 4; // under a card; the best come first

const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeZone: "UTC" });


// Listings that were found

// A name whose characters (code points) from `start` up to `end` of each mark are set off.
function marked(name, marks) {
  const characters = Array.from(name);
  const text = (start, end) => characters.slice(start, end).join("");
  const ends = [0, ...marks.map(([, end]) => end)];
  const parts = marks.flatMap(([start, end], at) => [text(ends[at], start), h("mark", {}, text(start, end))]);
  return [...parts, text(ends.at(-1))].filter((part) => part !== "");
}

function why({ score, reasons }) {
  if (score === null) return null;
  const told = reasons.slice(0, MOST_REASONS).map((reason) => h("li", {}, reason));
  const percent = Math.round(score * 100);
  const match = percent ? h("p", { class: "match" }, `${percent}% match`) : null;
  return h("div", { class: "why" }, match, told.length ? h("ul", { class: "reasons", "aria-label": "Why" }, told) : null);
}

// How often the same offer is listed, and links to the other listings of it.
function copies(listing, state) {
  const others = listing.duplicate_ids.slice(0, 5).map((id, place) => [
    " ",
    link({ ...state, listing: id }, { "data-listing": id, "data-keep-photo": true }, `no. ${place + 2}`),
  ]);
  return h("p", { class: "copies" }, `Listed ${formatCount(listing.duplicates + 1)} times`, others.flat());
}

function card(listing, state, heading) {
  const id = listing.product_id;
  const name = marked(listing.name, listing.name_marks);
  const title = link({ ...state, listing: id }, { "data-listing": id, "data-keep-photo": true }, name);
  return h(
    "li",
    { class: "card" },
    h("div", { class: "card-photo" }, photo(listing.photo_url, "", { loading: "lazy" })),
    h(
      "div",
      { class: "card-text" },
      h(heading, {}, title),
      price(listing),
      h("p", { class: "where" }, place(listing) || "Place unknown"),
      h("p", { class: "path" }, listing.category),
      listing.duplicates ? copies(listing, state) : null,
      why(listing),
    ),
  );
}

// Cards that keep the search of `state` in their links.
export function cards(listings, state, heading = "h2") {
  return h("ul", { class: "grid" }, listings.map((listing) => card(listing, state, heading)));
}

// In place of cards that are still asked for.
export function skeleton(n) {
  const blanks = Array.from({ length: n }, () => h("div", { class: "card" }));
  return h("div", { class: "grid skeleton", "aria-hidden": "true" }, blanks);
}

function asked({ q }, hasPhoto) {
  return [hasPhoto && "your photo", q && `“${q}”`].filter(Boolean).join(" and ");
}

// One sentence about n listings that are shown of those found. It tells how many there are in all, but for a photo: by that
// every listing is found.
export function summary(n, { isAll, total, totalIsAtLeast }, state, hasPhoto) {
  const like = asked(state, hasPhoto);
  const all = !isAll && total > n ? ` of ${formatCount(total)}${totalIsAtLeast ? "+" : ""}` : "";
  const shown = `${n}${all} ${n === 1 && !all ? "listing" : "listings"}`;
  if (!like) return `${shown}, the newest first.`;
  return `${isAll ? "" : "The best "}${shown} for ${like}, best first.`;
}

export function nothingClose(state, hasPhoto, hasNearest) {
  const like = asked(state, hasPhoto);
  return like ? `Nothing close to ${like}${hasNearest ? ": these come nearest." : "."}` : "Nothing found.";
}

// What was read for misspelt words, or null.
export function correctionLine(corrections) {
  const read = Object.entries(corrections).flatMap(([typed, meant], at) =>
    [at ? ", " : "", h("strong", {}, meant), ` (you typed “${typed}”)`]);
  return read.length ? h("p", { class: "corrections" }, "Showing results for ", read, ".") : null;
}

// In place of results: what may be done, and the listings that come nearest.
export function nothingFound(state, nearest) {
  return [
    advice(state),
    nearest.length
      ? h("section", { class: "nearest", "aria-labelledby": "nearest-title" },
        h("h2", { id: "nearest-title" }, "These come nearest"), cards(nearest, state, "h3"))
      : null,
  ].filter(Boolean);
}

export function moreButton(onclick) {
  return h("button", { type: "button", class: "more", onclick }, "Show more");
}

function advice(state) {
  const sentence = isFiltered(state)
    ? "No listing matches within these filters: widen the price, the place, the category or the match."
    : "Try other or fewer words, or a photo.";
  const way = isFiltered(state) ? link(withoutFilters(state), { "data-keep-photo": true }, "Search without filters") : null;
  return h("div", { class: "empty" }, h("p", {}, sentence), way);
}


// One listing

export function backLink(state, wasAsked) {
  const where = wasAsked ? "Back to the results" : "Find something";
  return link(state, { class: "back", "data-keep-photo": true }, icon("back"), where);
}

export function listingTitle(text, attributes = {}) {
  return h("h1", { id: "listing-title", tabindex: -1, ...attributes }, text);
}

export function listingDetails(listing) {
  const levels = listing.category.split(SEPARATOR);
  const crumbs = levels.map((name, depth) =>
    h("li", {}, link({ category: levels.slice(0, depth + 1).join(SEPARATOR) }, {}, name)));
  const posted = /^\d{4}-\d\d-\d\d/.test(listing.posted_on ?? "") ? day.format(new Date(listing.posted_on)) : null;
  return h(
    "div",
    { class: "listing" },
    gallery(listing.photos),
    h(
      "div",
      { class: "listing-text" },
      h("nav", { "aria-label": "Category" }, h("ol", { class: "crumbs" }, crumbs)),
      listingTitle(listing.name),
      price(listing),
      h("dl", {},
        h("div", {}, h("dt", {}, "Where"), h("dd", {}, place(listing) || "Unknown")),
        posted ? h("div", {}, h("dt", {}, "Posted"), h("dd", {}, posted)) : null),
      h("h2", {}, "Description"),
      h("p", { class: "description" }, listing.description || "None given."),
    ),
  );
}

function gallery(photos) {
  const large = h("div", { class: "large" });
  const alt = (at) => (photos.length > 1 ? `Photo ${at + 1} of ${photos.length}` : "Its photo");
  const choose = (at) => {
    large.replaceChildren(photo(photos[at]?.photo_url, alt(at)));
    thumbs.forEach((thumb, i) => thumb.setAttribute("aria-pressed", String(i === at)));
  };
  const thumbs = photos.map(({ photo_url }, at) =>
    h("button", { type: "button", "aria-label": `Show photo ${at + 1}`, onclick: () => choose(at) }, photo(photo_url, "")));
  choose(0);
  return h("div", { class: "gallery" }, large, thumbs.length > 1 ? h("div", { class: "thumbs" }, thumbs) : null);
}

export function nothingSimilar() {
  return h("p", {}, "Nothing like it yet.");
}

export function similarSection() {
  const heading = h("h2", { id: "similar-title" }, "More like this");
  return h("section", { class: "similar", "aria-labelledby": "similar-title" }, heading);
}


// An estimate for what is to be sold

export function noEstimate() {
  return h("p", { class: "empty" }, "The likely categories and a price range will stand here.");
}

function pricePanel({ low, median, high, currency }) {
  const money = new Intl.NumberFormat("en-GB", { style: "currency", currency, maximumFractionDigits: high < 10 ? 2 : 0 });
  const marker = h("span", { class: "range-marker" });
  marker.style.setProperty("left", `${(100 * (median - low)) / Math.max(high - low, 1e-9)}%`);
  const hint = `Half of such listings ask less than ${money.format(median)}; one in ten is below the range, one in ten above.`;
  return h("section", { class: "panel", "aria-labelledby": "price-title" },
    h("h2", { id: "price-title" }, "Price"),
    h("p", { class: "range-text" }, `${money.format(low)} to ${money.format(high)}`),
    h("div", { class: "range", "aria-hidden": "true" }, marker),
    h("p", { class: "hint" }, hint));
}

function chance({ category, probability }) {
  const percent = probability < 0.01 ? "under 1%" : `${Math.round(probability * 100)}%`;
  const bar = h("span", {});
  bar.style.setProperty("width", `${probability * 100}%`);
  const track = h("span", { class: "chance", "aria-hidden": "true" }, bar);
  return h("li", {}, h("span", {}, category), h("strong", {}, percent), track);
}

export function estimatePanels({ categories, price: range }, words) {
  return [
    pricePanel(range),
    h("section", { class: "panel", "aria-labelledby": "category-title" },
      h("h2", { id: "category-title" }, "Category"),
      h("ol", { class: "chances" }, categories.slice(0, LIKELY_CATEGORIES).map(chance))),
    h("p", {}, link({ q: words }, { "data-keep-photo": true }, "See listings like it")),
  ];
}
