// What the views show: cards and why they match, one listing, and an estimate.

import { formatCount, h, icon, link, photo, place, price } from "./elements.js";
import { FILTERS, withoutFilters } from "./history.js";
import { SEPARATOR } from "./query-form.js";

const LIKELY_CATEGORIES = 5;
const EVIDENCE = {
  photo: "looks alike",
  text: "reads alike",
  words: "has your words",
  category: "is the same kind of thing",
  price: "costs about the same",
  place: "is nearby",
};

const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeZone: "UTC" });


// Listings that were found

// The score and its parts in whole percent, rounded so that what is shown adds up (largest remainder).
function percentages(score, parts) {
  const total = Math.round(score * 100);
  const exact = Object.entries(parts).map(([kind, value]) => (
    { kind, rest: (value * 100) % 1, percent: Math.floor(value * 100) }));
  let left = total - exact.reduce((sum, { percent }) => sum + percent, 0);
  for (const part of exact.toSorted((a, b) => b.rest - a.rest)) if (left-- > 0) part.percent += 1;
  return { total, parts: exact.filter(({ percent }) => percent) };
}

function scoreLine(listing) {
  const { total, parts } = percentages(listing.score, listing.parts);
  const bar = h("span", { class: "score-bar", "aria-hidden": "true" });
  for (const { kind } of parts) {
    const segment = h("span", { "data-kind": kind });
    segment.style.setProperty("width", `${listing.parts[kind] * 100}%`);
    bar.append(segment);
  }
  const told = parts.map(({ kind, percent }) => h("span", { "data-kind": kind }, `${kind} ${percent}%`));
  return h("p", { class: "score" }, h("strong", {}, `${total}% match`), bar, h("span", { class: "parts" }, told));
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
  const title = link({ ...state, listing: id }, { "data-listing": id, "data-keep-photo": true }, listing.name);
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
      scoreLine(listing),
    ),
  );
}

function legend(listings) {
  const kinds = Object.keys(EVIDENCE).filter((kind) => listings.some(({ parts }) => kind in parts));
  const told = kinds.map((kind) => h("span", { "data-kind": kind }, h("b", {}, kind), ` ${EVIDENCE[kind]}`));
  return h("p", { class: "legend" }, "Why it matches:", told);
}

// Cards that keep the search of `state` in their links, below the legend of their colours.
export function cards(listings, state, heading = "h2") {
  return [legend(listings), h("ul", { class: "grid" }, listings.map((listing) => card(listing, state, heading)))];
}

// In place of cards that are still asked for.
export function skeleton(n) {
  const blanks = Array.from({ length: n }, () => h("div", { class: "card" }));
  return h("div", { class: "grid skeleton", "aria-hidden": "true" }, blanks);
}

export function summary(n, isAll, words, hasPhoto) {
  const like = [hasPhoto && "your photo", words && `“${words}”`].filter(Boolean).join(" and ");
  if (!n) return `Nothing found for ${like}.`;
  return `${isAll ? "" : "The best "}${n} ${n === 1 ? "listing" : "listings"} for ${like}, best first.`;
}

export function moreButton(onclick) {
  return h("button", { type: "button", class: "more", onclick }, "Show more");
}

export function nothingFound(state) {
  const isFiltered = FILTERS.some((name) => state[name]);
  const advice = isFiltered
    ? "No listing matches within these filters: widen the price, the place, the category or the match."
    : "Try other or fewer words, or a photo.";
  const way = isFiltered ? link(withoutFilters(state), { "data-keep-photo": true }, "Search without filters") : null;
  return h("div", { class: "empty" }, h("p", {}, advice), way);
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
    h("li", {}, link({ q: name, category: levels.slice(0, depth + 1).join(SEPARATOR) }, {}, name)));
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
