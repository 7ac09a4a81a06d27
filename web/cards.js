// Listings as cards: the photo, the price, one line of title with the matched words marked, and one line that says why.

import { formatCount, h, link, photo, place, price } from "./elements.js";

const SIZES = "(min-width: 75rem) 15rem, (min-width: 48rem) 30vw, 48vw"; // of a card's photo
const SEEN_AT_ONCE = 4; // photos that are loaded first

// A name whose characters (code points) from `start` up to `end` of each mark are set off.
function marked(name, marks) {
  const characters = Array.from(name);
  const text = (start, end) => characters.slice(start, end).join("");
  const ends = [0, ...marks.map(([, end]) => end)];
  const parts = marks.flatMap(([start, end], at) => [text(ends[at], start), h("mark", {}, text(start, end))]);
  return [...parts, text(ends.at(-1))].filter((part) => part !== "");
}

// Reasons of most listings that are found together tell nothing about one of them.
function commonReasons(listings) {
  const counts = new Map();
  for (const { reasons = [] } of listings) for (const reason of reasons) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  return new Set([...counts.keys()].filter((reason) => counts.get(reason) > Math.max(listings.length / 2, 2)));
}

// What the title's marks, and the line about misspelt words, do not tell.
function whyLine({ reasons = [], name_marks: marks = [] }, common) {
  const isByMarks = (reason) => /^(has|spelt:) /.test(reason);
  const line = reasons.filter((reason) => (isByMarks(reason) ? !marks.length : !common.has(reason))).join(" · ");
  return line ? h("p", { class: "why", title: reasons.join(" · ") }, line) : null;
}

function card(listing, state, { heading, isFirst, common }) {
  const id = listing.product_id;
  const name = marked(listing.name, listing.name_marks ?? []);
  const title = link({ ...state, listing: id }, { "data-listing": id, title: listing.name }, name);
  const loading = isFirst ? { fetchpriority: "high" } : { isLazy: true };
  return h(
    "li",
    { class: "card" },
    h("div", { class: "card-photo" },
      photo(listing.image_id, "", { sizes: SIZES, ...loading }),
      listing.duplicates ? h("span", { class: "badge" }, `Listed ${formatCount(listing.duplicates + 1)} times`) : null),
    h("div", { class: "card-text" },
      price(listing),
      h(heading, {}, title),
      place(listing) ? h("p", { class: "where" }, place(listing)) : null,
      whyLine(listing, common)),
  );
}

// Cards that keep the search of `state` in their links. `before`: how many there are already.
export function cardItems(listings, state, { heading = "h2", before = 0 } = {}) {
  const common = commonReasons(listings);
  return listings.map((listing, at) => card(listing, state, { heading, isFirst: before + at < SEEN_AT_ONCE, common }));
}

export function cards(listings, state, options) {
  return h("ul", { class: "grid" }, cardItems(listings, state, options));
}

// In place of cards that are still asked for.
export function skeleton(n) {
  const blank = () => h("div", { class: "card" }, h("div", { class: "card-photo" }), h("div", { class: "card-text" }));
  return h("div", { class: "grid skeleton", "aria-hidden": "true" }, Array.from({ length: n }, blank));
}
