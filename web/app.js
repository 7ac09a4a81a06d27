// The page of the marketplace: the address says what to show, the service answers, and the views show what it answers.

import { askForChoices, askForListing, askForSimilar, giveUpRequests } from "./api.js";
import { cropper } from "./crop.js";
import { alertLine, byId, h, icon, link, setBusy, tell } from "./elements.js";
import { closeFilters, followFilters, lastName, setChoices } from "./filters.js";
import {
  followBack, followLinks, forgetScroll, hasPhoto, isAsked, reachScroll, stateOf, viewOf, visit,
} from "./history.js";
import { showHome } from "./home.js";
import { backLink, listingDetails, listingTitle, relatedSections, similarSection } from "./listing.js";
import { photoField, takeDroppedPhotos, takePastedPhotos } from "./photo-field.js";
import { cropOf, photoToShow } from "./photo-question.js";
import { keepPhoto } from "./photo-store.js";
import { foundListing, showResults } from "./results.js";
import { showSell } from "./sell.js";

const TITLE = document.title;

const sections = { home: byId("home-view"), search: byId("search-view"), listing: byId("listing-view"), sell: byId("sell-view") };
const [searchForm, sellForm] = ["search-form", "sell-form"].map(byId);
const [photoWays, photoPanel, sort] = ["photo-ways", "photo-panel", "sort"].map(byId);
const NO_PHOTO = { photo: "", like: "", crop: "" };
const sellPhoto = photoField(sellForm.querySelector(".photo-field"), (file) => estimate(file ? asPhoto(file) : NO_PHOTO));

let shown = { section: null, state: stateOf("/") };

photoField(photoWays.querySelector(".photo-field"), (file) => file && search(asPhoto(file)));


// Going from view to view

function go(state, how) {
  forgetScroll();
  visit(state, how);
  const before = shown;
  show();
  if (before.section !== shown.section || before.state.listing !== shown.state.listing) {
    scrollTo(0, 0);
    sections[shown.section].querySelector("h1")?.focus({ preventScroll: true });
  } else if (!how?.inPlace && scrollY > 0) {
    scrollTo(0, 0); // another search is read from its beginning
  }
}

function sectionOf(state) {
  const view = viewOf(state);
  return view === "search" && !isAsked(state) ? "home" : view;
}

function show() {
  const state = stateOf(location.href);
  const section = sectionOf(state);
  giveUpRequests();
  photoWays.hidePopover();
  for (const [name, node] of Object.entries(sections)) node.hidden = name !== section;
  for (const anchor of document.querySelectorAll("nav a")) {
    const isCurrent = (anchor.dataset.view === "sell") === (section === "sell");
    if (isCurrent) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (section !== "search") closeFilters();
  shown = { section, state };
  searchForm.elements.q.value = section === "sell" ? "" : state.q;
  setTitle("");
  if (section === "home" || section === "sell" || hasPhoto(state)) needChoices();
  ({ home: () => showHome(byId("browse")), search: showSearch, listing: showListing, sell: showSelling })[section](state);
}

function setTitle(text) {
  document.title = text ? `${text} – ${TITLE}` : TITLE;
  document.querySelector("meta[property='og:title']").content = document.title;
}

// The link to the listing that was left has the focus again.
function restore() {
  const left = shown.state.listing;
  show();
  const origin = left && sections[shown.section].querySelector(`a[data-listing="${CSS.escape(left)}"]`);
  if (origin) origin.focus({ preventScroll: true });
}

const asPhoto = (file) => ({ photo: keepPhoto(file), like: "", crop: "" });

function take(file) {
  if (shown.section === "sell") estimate(asPhoto(file));
  else search(asPhoto(file));
}


// Finding

// A search with what changes beside what is shown and typed.
function search(changes, how) {
  const from = shown.section === "search" || shown.section === "listing" ? shown.state : stateOf("/");
  go({ ...from, view: "", listing: "", q: searchForm.elements.q.value.trim(), ...changes }, how);
}

function showSearch(state) {
  setTitle([state.q, state.category && lastName(state.category)].filter(Boolean).join(" in "));
  byId("search-title").textContent = state.q ? `Results for “${state.q}”` : "Results";
  const ranked = state.q && !hasPhoto(state);
  sort.parentNode.hidden = hasPhoto(state);
  sort.querySelector("option").hidden = sort.querySelector("option").disabled = !ranked;
  sort.value = state.sort || (ranked ? "relevance" : "newest");
  showPhotoPanel(state);
  showResults(state);
}

let panelKey = null; // of the photo in the panel

async function showPhotoPanel(state) {
  const key = hasPhoto(state) ? `${state.photo} ${state.like}` : null;
  photoPanel.hidden = !key;
  if (key === panelKey && (!key || photoPanel.dataset.crop === state.crop)) return;
  panelKey = key;
  photoPanel.dataset.crop = state.crop;
  if (!key) return photoPanel.replaceChildren();
  const remove = h("button", { type: "button", class: "quiet", "aria-label": "Remove the photo" }, icon("close"), "Remove");
  remove.addEventListener("click", () => {
    search(NO_PHOTO);
    searchForm.elements.q.focus();
  });
  const whole = state.crop ? link({ ...state, crop: "" }, { class: "whole" }, "Whole photo") : null;
  const head = h("p", { class: "photo-head" }, h("span", {}, "Drag the corners to the thing itself"), whole, remove);
  const before = photoPanel.querySelector(".cropper");
  let box = null;
  try {
    const bitmap = await createImageBitmap(await photoToShow(state));
    box = cropper(bitmap, cropOf(state), (crop) => {
      photoPanel.dataset.crop = crop;
      search({ crop }, { inPlace: true });
    });
  } catch {
    box = h("p", { class: "hint" }, "This photo cannot be shown here, but it can be searched with.");
  }
  if (key !== panelKey) return;
  photoPanel.replaceChildren(box, head);
  if (before?.contains(document.activeElement)) photoPanel.querySelector(".frame")?.focus();
}

// What filters can be set to, asked for where a view or a person needs it.
function needChoices() {
  askForChoices({
    done: (choices) => {
      if (!setChoices(choices)) return;
      if (shown.section === "home") showHome(byId("browse"));
      else if (shown.section === "sell") showSell(shown.state);
      else if (shown.section === "search" && hasPhoto(shown.state)) showResults(shown.state);
    },
    failed: () => {}, // without them, filters can still be typed
  });
}


// One listing

function showListing(state) {
  const section = sections.listing;
  const search = { ...state, listing: "" };
  const back = backLink(search, isAsked(search) || state.view === "sell");
  setBusy(section, true);
  section.replaceChildren(back, listingTitle("Fetching the listing…", { class: "fetching" }));
  const done = (listing) => {
    setBusy(section, false);
    setTitle(listing.name);
    const hadFocus = document.activeElement?.id === "listing-title";
    const similar = similarSection(search);
    const details = listingDetails(listing, foundListing(state.listing));
    section.replaceChildren(back, details, ...relatedSections(listing, search), similar.section);
    if (hadFocus) byId("listing-title").focus({ preventScroll: true });
    askForSimilar(state.listing, {
      done: (answer) => {
        similar.done(answer);
        reachScroll();
      },
      failed: similar.failed,
    });
    reachScroll();
  };
  const failed = (sentence) => {
    setBusy(section, false);
    section.replaceChildren(back, listingTitle("This listing cannot be shown"), alertLine(sentence, () => showListing(state)));
  };
  askForListing(state.listing, { done, failed });
}


// Selling

function estimate(changes) {
  const { photo, like, crop } = shown.section === "sell" ? shown.state : NO_PHOTO;
  go({ view: "sell", q: sellForm.elements.q.value.trim(), photo, like, crop, ...changes });
}

function showSelling(state) {
  setTitle("Sell");
  sellForm.elements.q.value = state.q;
  if (hasPhoto(state)) photoToShow(state).then(sellPhoto.set, () => sellPhoto.set(null));
  else sellPhoto.set(null);
  showSell(state);
}


// What a person does, and the first view

function listen() {
  followLinks(go);
  followBack(restore);
  takeDroppedPhotos(take);
  takePastedPhotos(take);
  followFilters((changes) => search(changes));
  byId("filters").elements.location.addEventListener("focus", needChoices); // places to choose from
  searchForm.addEventListener("submit", (event) => {
    event.preventDefault();
    search({});
  });
  sort.addEventListener("change", () => search({ sort: sort.value === "relevance" ? "" : sort.value }));
  sellForm.addEventListener("submit", (event) => {
    event.preventDefault();
    estimate({});
    if (!shown.state.q && !hasPhoto(shown.state)) tell(byId("sell-error"), "Add a photo, some words, or both.");
  });
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select, [contenteditable], dialog");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    event.preventDefault();
    searchForm.elements.q.focus();
  });
}

listen();
show();
