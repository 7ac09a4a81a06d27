// The address and the browser's history: what is shown, how a link changes it, and how Back restores it with its photo.

import { queryString } from "./api.js";

export const FILTERS = ["category", "min_price", "max_price", "location", "min_score"];
const FIELDS = ["view", "q", ...FILTERS, "k", "listing"]; // of the address, in this order

// A photo cannot stand in an address: the history's entry holds its key, and the photo itself stays in this tab.
const photos = new Map();

export function keepPhoto(file) {
  const key = `${performance.timeOrigin}-${photos.size}`;
  photos.set(key, file);
  return key;
}

// Null when there is none, or when it went with a reload.
export function photoOf(key) {
  return photos.get(key) ?? null;
}

export function currentPhotoKey() {
  return history.state?.photo ?? null;
}

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

export function filtersOf(state) {
  return Object.fromEntries(FILTERS.map((name) => [name, state[name]]));
}

export function isFiltered(state) {
  return FILTERS.some((name) => state[name]);
}

export function withoutFilters(state) {
  return { ...state, ...Object.fromEntries(FILTERS.map((name) => [name, ""])) };
}

// Makes a state the current one: a new entry, or the same entry when nothing changes.
export function visit(state, photoKey) {
  const url = address(state);
  const entry = { photo: photoKey, scroll: 0, from: location.pathname + location.search };
  if (url === entry.from && photoKey === currentPhotoKey()) {
    history.replaceState({ ...entry, from: history.state?.from }, "", url);
  } else {
    history.replaceState({ ...history.state, scroll: scrollY }, "");
    history.pushState(entry, "", url);
  }
}

// Links are plain, to be shared or opened elsewhere; a plain click on one stays in the page.
export function followLinks(go) {
  document.addEventListener("click", (event) => {
    const anchor = event.target.closest("a[href^='/']");
    const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (!anchor || !plain || event.defaultPrevented || new URL(anchor.href).pathname !== "/") return;
    event.preventDefault();
    if (anchor.classList.contains("back") && anchor.getAttribute("href") === history.state?.from) history.back();
    else go(stateOf(anchor.href), "keepPhoto" in anchor.dataset ? currentPhotoKey() : null);
  });
  // A jump within the page would be an entry of the history, without its photo.
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
}

// Scrolls only after `restore` has drawn the view: before, the page may be too short.
export function followBack(restore) {
  history.scrollRestoration = "manual";
  addEventListener("popstate", () => {
    restore();
    scrollTo(0, history.state?.scroll ?? 0);
  });
}
