// What a search found: cards, more of them as one scrolls, and what can be done where nothing is close.

import { askForListings } from "./api.js";
import { cardItems, cards, skeleton } from "./cards.js";
import { byId, formatCount, h, link, setBusy, tell } from "./elements.js";
import { chips, showFilters, widerFilters } from "./filters.js";
import { address, filtersOf, forgetScroll, hasPhoto, isFiltered, leaveNote, notes, reachScroll } from "./history.js";
import { photoToAsk } from "./photo-question.js";

const PAGE_SIZE = 24; // listings at a time
const UNASKED = 96; // that come by scrolling alone: the end of the page stays within reach
const MAX_RESULTS = 480;
const NEAREST = 3;

const [results, status, error] = ["results", "search-status", "search-error"].map(byId);
const sentinel = h("div", { class: "sentinel" });

const foundById = new Map(); // id -> the listing as it was found last
let drawn = { key: null, count: 0 }; // the search whose cards are shown
let showNext = null; // shows the next page when the end of the cards comes near

new IntersectionObserver((entries) => entries.at(-1).isIntersecting && showNext?.(), { rootMargin: "800px" }).observe(sentinel);

function asked(state) {
  const photo = hasPhoto(state) && (state.like ? "this photo" : "your photo");
  return [photo, state.q && `“${state.q}”`].filter(Boolean).join(" and ");
}

const listingsOf = (number, text) => `${text ?? formatCount(number)} ${number === 1 ? "listing" : "listings"}`;

// By a photo every listing is found: what counts is how many are close to it.
function summary(state, listings, { total = 0, total_is_at_least: isAtLeast = false }) {
  if (hasPhoto(state)) {
    const close = listings.filter((listing) => listing.close).length;
    if (!close) return `Nothing close to ${asked(state)}: the most alike come first`;
    return `${formatCount(close)} close ${close === 1 ? "match" : "matches"} for ${asked(state)}`;
  }
  const all = listingsOf(total, `${formatCount(total)}${isAtLeast ? "+" : ""}`);
  return asked(state) ? `${all} for ${asked(state)}` : all;
}

// What was read for misspelt words, or null.
function correctionLine(corrections) {
  const read = Object.entries(corrections).flatMap(([typed, meant], at) =>
    [at ? ", " : "", h("strong", {}, meant), ` (you typed “${typed}”)`]);
  return read.length ? h("p", { class: "corrections" }, "Showing results for ", read, ".") : null;
}

// In place of results: what may be done, and the listings that come nearest.
function nothingFound(state, { nearest, corrections }) {
  const sentence = isFiltered(state) ? "Nothing matches within these filters. Widen one of them:" : adviceFor(state);
  const ways = [...widerFilters(state), ...shorterWords(state)];
  return [
    correctionLine(corrections),
    h("div", { class: "empty" }, h("p", {}, sentence), ways.length ? h("p", { class: "ways-out" }, ways) : null),
    nearest.length
      ? h("section", { class: "nearest", "aria-labelledby": "nearest-title" },
        h("h2", { id: "nearest-title" }, "These come nearest"), cards(nearest, state, { heading: "h3" }))
      : null,
  ].filter(Boolean);
}

function adviceFor(state) {
  if (hasPhoto(state)) return "Mark the thing itself on the photo, or say in words what it is.";
  return "Check the spelling, use fewer or more usual words, or search by a photo.";
}

// Each of several words by itself.
function shorterWords(state) {
  const words = [...new Set(state.q.split(/\s+/).filter((word) => word.length > 2))];
  return words.length > 1 ? words.slice(0, 4).map((q) => link({ ...state, q }, { class: "chip" }, `“${q}”`)) : [];
}

// The lists that cards are put in: with a photo, what is close to it, and the rest.
function startCards(state, answer, listings) {
  const isSplit = hasPhoto(state) && listings[0].close;
  const close = h("ul", { class: "grid" });
  const rest = isSplit ? h("ul", { class: "grid" }) : close;
  results.replaceChildren(...[
    correctionLine(answer.corrections ?? {}), close,
    isSplit && listings.some((listing) => !listing.close) && h("h2", { class: "less-alike" }, "Less alike"),
    isSplit && rest, sentinel,
  ].filter(Boolean));
  return (listing) => (listing.close ? close : rest);
}

let listFor = null; // listing -> the list that its card belongs in

function drawCards(state, key, listings, answer) {
  if (drawn.key !== key || drawn.count > listings.length || !results.contains(sentinel)) {
    listFor = startCards(state, answer, listings);
    drawn = { key, count: 0 };
  }
  const items = cardItems(listings.slice(drawn.count), state, { before: drawn.count });
  items.forEach((item, at) => listFor(listings[drawn.count + at]).append(item));
  drawn.count = listings.length;
}

function drawNothing(state, found, hasMore) {
  drawn = { key: null, count: 0 };
  const showWeak = () => {
    leaveNote({ weak: true });
    showResults(state);
    focusWhenDrawn(NEAREST);
  };
  const more = h("button", { type: "button", class: "more", onclick: showWeak }, "Show what is less alike too");
  results.replaceChildren(...nothingFound(state, found), hasMore ? more : "");
}

function drawMore(state, { k, isAll }) {
  const more = () => {
    showNext = null;
    leaveNote({ shown: Math.min(k + PAGE_SIZE, MAX_RESULTS) });
    showResults(state);
  };
  const byButton = async () => {
    const before = results.querySelectorAll(".card").length;
    more();
    focusWhenDrawn(before);
  };
  sentinel.replaceChildren();
  showNext = null;
  if (isAll) return;
  if (k >= MAX_RESULTS) sentinel.append(h("p", {}, "That is a lot to look through: narrow it with words or filters."));
  else if (k >= UNASKED) sentinel.append(h("button", { type: "button", class: "more", onclick: byButton }, "Show more"));
  else showNext = more;
}

// The card that comes next has the focus that the button had.
function focusWhenDrawn(at) {
  focusedNext = at;
  takeFocus();
}

let focusedNext = null;

function takeFocus() {
  const anchor = focusedNext !== null && results.querySelectorAll(".card a")[focusedNext];
  if (!anchor) return;
  focusedNext = null;
  anchor.focus({ preventScroll: true });
}

export function showResults(state) {
  const k = Math.min(Math.max(notes().shown ?? 0, PAGE_SIZE), MAX_RESULTS);
  const key = address({ ...state, listing: "" });
  const hadKey = drawn.key === key;
  byId("chips").replaceChildren(...chips(state));
  tell(error, "");
  const waiting = () => {
    setBusy(results, true);
    if (hadKey) return;
    status.textContent = hasPhoto(state) ? "Looking at the photo…" : "Looking…";
    showFilters(state, null);
    if (!results.querySelector(".card a")) results.replaceChildren(skeleton(8));
  };
  const done = ({ listings, complete, answer }) => {
    const best = listings.slice(0, k);
    for (const listing of best) foundById.set(listing.product_id, listing);
    const nothing = !best.length || (hasPhoto(state) && !best[0].close && !notes().weak);
    setBusy(results, false);
    showFilters(state, answer.counts ?? null, (best[0] ?? answer.nearest?.[0])?.currency);
    byId("chips").replaceChildren(...chips(state));
    const nearest = best.length ? best.slice(0, NEAREST) : answer.nearest ?? [];
    status.textContent = nothing ? nothingClose(state, nearest.length) : summary(state, best, answer);
    if (nothing) drawNothing(state, { nearest, corrections: answer.corrections ?? {} }, best.length > NEAREST);
    else {
      drawCards(state, key, best, answer);
      drawMore(state, { k, isAll: complete && listings.length <= k });
    }
    takeFocus();
    reachScroll();
  };
  const failed = (sentence) => {
    setBusy(results, false);
    showFilters(state, null);
    if (!results.querySelector(".card a")) results.replaceChildren();
    status.textContent = "";
    forgetScroll();
    tell(error, sentence, () => showResults(state));
  };
  const photo = hasPhoto(state) ? () => photoToAsk(state) : null;
  const sort = photo || (state.q && state.sort === "relevance") ? "" : state.sort;
  askForListings({ key, words: state.q, photo, filters: filtersOf(state), sort, k }, { waiting, done, failed });
}

function nothingClose(state, hasNearest) {
  const like = asked(state);
  if (!like) return "Nothing found";
  return `Nothing close to ${like}${hasNearest ? ": these come nearest" : ""}`;
}

// A listing as a search found it, with the reasons and its copies; undefined where none did since the page was loaded.
export const foundListing = (id) => foundById.get(id);
