// The address and the browser's history: what is shown, how a link changes it, and how Back restores it.

import { queryString } from "./query-string.js";

export const FILTERS = ["category", "min_price", "max_price", "location", "min_score"];
// `photo` names a photo kept in this browser, `like` a photo of the catalogue, `crop` a part of either.
const FIELDS = ["view", "q", "photo", "like", "crop", ...FILTERS, "sort", "listing"]; // of the address, in this order

let waitingScroll = null; // where the view was left: reached once it is long enough

export function stateOf(url) {
  const values = new URL(url, location.href).searchParams;
  return Object.fromEntries(FIELDS.map((name) => [name, values.get(name) ?? ""]));
}

export function address(state) {
  const query = queryString(Object.fromEntries(FIELDS.map((name) => [name, state[name]])));
  return query ? `/?${query}` : "/";
}

export function viewOf(state) {
  if (state.listing) return "listing";
  return state.view === "sell" ? "sell" : "search";
}

export const hasPhoto = (state) => Boolean(state.photo || state.like);

export function filtersOf(state) {
  return Object.fromEntries(FILTERS.map((name) => [name, state[name]]));
}

export function isFiltered(state) {
  return FILTERS.some((name) => state[name]);
}

export function withoutFilters(state) {
  return { ...state, ...Object.fromEntries(FILTERS.map((name) => [name, ""])) };
}

export function isAsked(state) {
  return Boolean(state.q || hasPhoto(state) || isFiltered(state) || state.sort);
}

// Makes a state the current one: a new entry, or the same entry when nothing changes or when `inPlace`.
export function visit(state, { inPlace = false } = {}) {
  const url = address(state);
  const from = location.pathname + location.search;
  if (inPlace || url === from) {
    history.replaceState({ from: history.state?.from, scroll: 0, shown: 0 }, "", url);
  } else {
    leaveNote({ scroll: scrollY });
    history.pushState({ from, scroll: 0, shown: 0 }, "", url);
  }
}

// What the current entry remembers for the way back.
export function leaveNote(note) {
  history.replaceState({ ...history.state, ...note }, "");
}

export const notes = () => history.state ?? {};

// Links are plain, to be shared or opened elsewhere; a plain click on one stays in the page.
export function followLinks(go) {
  document.addEventListener("click", (event) => {
    const anchor = event.target.closest("a[href^='/']");
    const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (!anchor || !plain || event.defaultPrevented || new URL(anchor.href).pathname !== "/") return;
    event.preventDefault();
    if (anchor.classList.contains("back") && anchor.getAttribute("href") === notes().from) history.back();
    else go(stateOf(anchor.href));
  });
  // A jump within the page would be an entry of the history.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
}

export function followBack(restore) {
  history.scrollRestoration = "manual";
  waitingScroll = notes().scroll ?? null; // after a reload
  addEventListener("popstate", () => {
    waitingScroll = notes().scroll ?? 0;
    restore();
    reachScroll();
  });
  const settles = "onscrollend" in window ? "scrollend" : "pagehide";
  addEventListener(settles, () => waitingScroll === null && leaveNote({ scroll: scrollY })); // for a reload
}

// Called whenever something was drawn.
export function reachScroll() {
  if (waitingScroll === null || document.documentElement.scrollHeight - innerHeight < waitingScroll) return;
  scrollTo(0, waitingScroll);
  waitingScroll = null;
}

export function forgetScroll() {
  waitingScroll = null;
}
