// One listing: its photos, what it costs and whether that is likely, where it is, and more like it.

import { alertLine, formatCount, formatDay, formatPercent, h, icon, link, place, price } from "./elements.js";
import { cards, skeleton } from "./cards.js";
import { SEPARATOR } from "./filters.js";
import { gallery } from "./gallery.js";
import { priceChart, rangeText, VERDICTS } from "./price-chart.js";

export function backLink(state, wasAsked) {
  return link(state, { class: "back" }, icon("back"), wasAsked ? "Back to the results" : "Find something");
}

export function listingTitle(text, attributes = {}) {
  return h("h1", { id: "listing-title", tabindex: -1, ...attributes }, text);
}

function breadcrumb(category) {
  const levels = category.split(SEPARATOR);
  const crumbs = levels.map((name, depth) =>
    h("li", {}, link({ category: levels.slice(0, depth + 1).join(SEPARATOR) }, {}, name)));
  return h("nav", { "aria-label": "Category" }, h("ol", { class: "crumbs" }, crumbs));
}

// Nothing where the range tells nothing, or there is no price to compare.
function usualPrice({ price: asked, price_range: range, price_verdict: verdict }) {
  if (!range?.is_informative) return null;
  return h("section", { class: "usual", "aria-label": "Usual price" },
    h("p", {}, verdict ? `${VERDICTS[verdict]}: ` : "Such things usually cost ", h("strong", {}, rangeText(range))),
    priceChart(range, verdict ? asked : null));
}

// Listings that go with this one, below it: the same offer again, and others of its seller, where there are any.
export function relatedSections(listing, state) {
  const section = (id, title, listings) =>
    listings.length
      ? h("section", { class: "similar", "aria-labelledby": id },
        h("h2", { id }, title), cards(listings, state, { heading: "h3" }))
      : null;
  const times = `Listed ${formatCount((listing.duplicates ?? 0) + 1)} times`;
  return [
    section("copies-title", times, listing.duplicate_listings ?? []),
    section("seller-title", "From the same seller", listing.same_seller_listings ?? []),
  ].filter(Boolean);
}

function fact(name, value) {
  return value ? h("div", {}, h("dt", {}, name), h("dd", {}, value)) : null;
}

// `found`: the same listing as the search found it, or undefined.
function whyFound(found) {
  if (!found?.reasons?.length) return null;
  return h("details", { class: "why-found" },
    h("summary", {}, "Why this was found"),
    h("ul", {}, found.reasons.map((reason) => h("li", {}, reason))),
    found.score === null ? null : h("p", { class: "hint" }, `Chance that it is what you meant: ${formatPercent(found.score)}`));
}

function share(listing) {
  const said = h("span", { role: "status", class: "hint" });
  const onclick = async () => {
    const url = new URL(`/?listing=${encodeURIComponent(listing.product_id)}`, location.href).href;
    try {
      if (navigator.share) await navigator.share({ title: listing.name, url });
      else {
        await navigator.clipboard.writeText(url);
        said.textContent = "Link copied";
      }
    } catch {
      said.textContent = ""; // the person changed their mind, or the browser forbids it
    }
  };
  return h("p", { class: "share" }, h("button", { type: "button", onclick }, icon("share"), "Share"), said);
}

export function listingDetails(listing, found) {
  const asQuestion = (id) => link({ like: id }, { class: "button" }, icon("lens"), "Search with this photo");
  return h(
    "div",
    { class: "listing" },
    gallery(listing.photos, asQuestion),
    h(
      "div",
      { class: "listing-text" },
      breadcrumb(listing.category),
      listingTitle(listing.name),
      price(listing),
      usualPrice(listing),
      h("dl", {},
        fact("Where", place(listing) ? link({ location: place(listing) }, {}, place(listing)) : null),
        fact("Posted", formatDay(listing.posted_on))),
      share(listing),
      h("h2", {}, "Description"),
      h("p", { class: "description" }, listing.description || "None given."),
      whyFound(found),
    ),
  );
}

// A section of listings like this one, and how it is filled.
export function similarSection(state) {
  const heading = h("h2", { id: "similar-title" }, "More like this");
  const section = h("section", { class: "similar", "aria-labelledby": "similar-title" }, heading, skeleton(4));
  const showBelow = (node) => section.replaceChildren(heading, node);
  const done = ({ results }) =>
    showBelow(results.length ? cards(results, state, { heading: "h3" }) : h("p", {}, "Nothing like it yet."));
  return { section, done, failed: (sentence) => showBelow(alertLine(sentence)) };
}
