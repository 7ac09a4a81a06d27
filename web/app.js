// The page of the marketplace: the address says what to show, the service answers, and the views show what it answers.

import { askForChoices, askForEstimate, askForListing, askForListings, askForSimilar, giveUpRequests } from "./api.js";
import { alertLine, byId, setBusy, tell } from "./elements.js";
import {
  address, currentPhotoKey, filtersOf, followBack, followLinks, isFiltered, keepPhoto, photoOf, stateOf, viewOf, visit,
} from "./history.js";
import { photoField, takeDroppedPhotos, takePastedPhotos } from "./photo-field.js";
import { fillForm, foldFilters, followForm, setChoices, showCategoryMenus, typedValues, welcome } from "./query-form.js";
import {
  backLink, cards, correctionLine, estimatePanels, listingDetails, listingTitle, moreButton, noEstimate, nothingClose,
  nothingFound, nothingSimilar, similarSection, skeleton, summary,
} from "./views.js";

const PAGE_SIZE = 24; // listings at a time
const MAX_RESULTS = 480;

const sections = { search: byId("search-view"), listing: byId("listing-view"), sell: byId("sell-view") };
const sellForm = byId("sell-form");
const searchPhoto = photoField(sections.search.querySelector(".photo-field"), (file) => search({}, file && keepPhoto(file)));
const sellPhoto = photoField(sections.sell.querySelector(".photo-field"), (file) => estimate(file && keepPhoto(file)));

let shown = { view: null, state: stateOf("/") };


// Going from view to view

function go(state, photoKey = null) {
  visit(state, photoKey);
  const before = shown;
  show();
  if (before.view !== shown.view || before.state.listing !== shown.state.listing) {
    scrollTo(0, 0);
    sections[shown.view].querySelector("h1")?.focus({ preventScroll: true });
  }
}

function show() {
  const state = stateOf(location.href);
  const view = viewOf(state);
  giveUpRequests();
  for (const [name, section] of Object.entries(sections)) section.hidden = name !== view;
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.dataset.view === view) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  shown = { view, state };
  const photoKey = currentPhotoKey();
  ({ search: showSearch, listing: showListing, sell: showSell })[view](state, photoOf(photoKey), photoKey);
}

// The link to the listing that was left has the focus again.
function restore() {
  const left = shown.state.listing;
  show();
  const origin = left && sections[shown.view].querySelector(`a[data-listing="${CSS.escape(left)}"]`);
  if (origin) origin.focus({ preventScroll: true });
}

function take(photo) {
  if (shown.view === "sell") estimate(keepPhoto(photo));
  else if (shown.view === "search") search({}, keepPhoto(photo));
  else go({}, keepPhoto(photo));
}


// Finding

function search(changes, photoKey = currentPhotoKey()) {
  const category = shown.view === "search" ? shown.state.category : "";
  go({ category, ...typedValues(), ...changes }, photoKey);
}

function showSearch(state, photo, photoKey) {
  fillForm(state);
  searchPhoto.set(photo);
  const isPhotoGone = photoKey && !photo; // filters alone would answer something else
  const isAsked = Boolean(state.q || photo || (isFiltered(state) && !isPhotoGone));
  document.title = state.q ? `${state.q} – Marketplace` : "Marketplace";
  sections.search.classList.toggle("asked", isAsked);
  tell(byId("search-error"), "");
  if (isAsked) showResults(state, photo, photoKey);
  else showFirstPage(isPhotoGone);
}

function showFirstPage(isPhotoGone) {
  const sentence = "This search had a photo, which is not kept when a page is reloaded: choose it again.";
  byId("search-status").textContent = isPhotoGone ? sentence : "";
  setBusy(byId("results"), false);
  byId("results").replaceChildren(welcome());
}

function showResults(state, photo, photoKey) {
  const [status, results] = [byId("search-status"), byId("results")];
  const k = Math.min(Math.max(Number.parseInt(state.k, 10) || PAGE_SIZE, 1), MAX_RESULTS);
  const key = `${photoKey} ${address({ ...state, k: "", listing: "" })}`;
  const waiting = () => {
    status.textContent = photo ? "Looking at the photo…" : "Looking…";
    setBusy(results, true);
    if (!results.querySelector(".card a")) results.replaceChildren(skeleton(8));
  };
  const done = ({ listings, complete, answer }) => {
    const { total = 0, total_is_at_least: totalIsAtLeast = false, nearest = [], corrections = {} } = answer;
    const best = listings.slice(0, k);
    const isAll = complete && listings.length <= k;
    setBusy(results, false);
    // Words that nothing is close to are answered by no results; a photo always has some, the best first.
    const isClose = photo ? best[0]?.close : best.length;
    status.textContent = isClose
      ? summary(best.length, { isAll, total, totalIsAtLeast }, state, Boolean(photo))
      : nothingClose(state, Boolean(photo), Boolean(best.length || nearest.length));
    const cardsBefore = document.activeElement?.classList.contains("more") ? results.querySelectorAll(".card").length : -1;
    const shownListings = best.length ? [correctionLine(corrections), cards(best, state)] : nothingFound(state, nearest);
    results.replaceChildren(...shownListings.filter(Boolean));
    if (best.length && !isAll && k < MAX_RESULTS) results.append(moreButton(() => showMore(state, k)));
    results.querySelectorAll(".card a")[cardsBefore]?.focus({ preventScroll: true });
  };
  const failed = (sentence) => {
    setBusy(results, false);
    status.textContent = "";
    results.replaceChildren();
    tell(byId("search-error"), sentence);
  };
  askForListings({ key, words: state.q, photo, filters: filtersOf(state), k }, { waiting, done, failed });
}

function showMore(state, k) {
  go({ ...state, k: String(Math.min(k + PAGE_SIZE, MAX_RESULTS)) }, currentPhotoKey());
}

function showChoices(choices) {
  setChoices(choices);
  if (shown.view !== "search") return;
  showCategoryMenus(shown.state.category);
  if (!sections.search.classList.contains("asked")) byId("results").replaceChildren(welcome());
}


// One listing

function showListing(state) {
  const section = sections.listing;
  const back = backLink({ ...state, listing: "" }, Boolean(state.q || currentPhotoKey() || isFiltered(state)));
  document.title = "Marketplace";
  setBusy(section, true);
  section.replaceChildren(back, listingTitle("Fetching the listing…", { class: "fetching" }));
  const done = (listing) => {
    setBusy(section, false);
    document.title = `${listing.name} – Marketplace`;
    const hadFocus = document.activeElement?.id === "listing-title";
    const similar = similarSection();
    section.replaceChildren(back, listingDetails(listing), similar);
    if (hadFocus) byId("listing-title").focus({ preventScroll: true });
    showSimilar(state, similar);
  };
  const failed = (sentence) => {
    setBusy(section, false);
    section.replaceChildren(back, listingTitle("This listing cannot be shown"), alertLine(sentence));
  };
  askForListing(state.listing, { done, failed });
}

function showSimilar(state, section) {
  const heading = section.firstChild;
  const showBelow = (...nodes) => section.replaceChildren(heading, ...nodes);
  showBelow(skeleton(4));
  askForSimilar(state.listing, {
    done: ({ results }) => showBelow(results.length ? cards(results, state, "h3") : nothingSimilar()),
    failed: (sentence) => showBelow(alertLine(sentence)),
  });
}


// Selling

function estimate(photoKey = currentPhotoKey()) {
  go({ view: "sell", q: sellForm.elements.q.value.trim() }, photoKey);
}

function showSell(state, photo, photoKey) {
  document.title = "Sell – Marketplace";
  sellForm.elements.q.value = state.q;
  sellPhoto.set(photo);
  tell(byId("sell-error"), "");
  const [status, prediction] = [byId("sell-status"), byId("prediction")];
  const finish = (sentence, ...nodes) => {
    setBusy(prediction, false);
    status.textContent = sentence;
    prediction.replaceChildren(...nodes);
  };
  if (!state.q && !photo) {
    status.textContent = "";
    prediction.replaceChildren(noEstimate());
    return;
  }
  status.textContent = photo ? "Looking at the photo…" : "Reading…";
  setBusy(prediction, true);
  askForEstimate({ words: state.q, photo, photoKey }, {
    done: (answer) => finish("An estimate from listings like it:", ...estimatePanels(answer, state.q)),
    failed: (sentence) => {
      finish("");
      tell(byId("sell-error"), sentence);
    },
  });
}


// What a person does, and the first view

function listen() {
  followLinks(go);
  followBack(restore);
  takeDroppedPhotos(take);
  takePastedPhotos(take);
  followForm(search);
  foldFilters();
  sellForm.addEventListener("submit", (event) => {
    event.preventDefault();
    estimate();
    if (!shown.state.q && !photoOf(currentPhotoKey())) tell(byId("sell-error"), "Add a photo, some words, or both.");
  });
}

listen();
show();
askForChoices({
  done: showChoices,
  failed: (sentence) => {
    if (shown.view === "search") byId("search-status").textContent ||= sentence;
  },
});
