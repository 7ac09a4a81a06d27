// The filters of a search: categories, prices and places with how many listings each would leave, as a column beside the
// results or as a sheet from below, and as chips above the results.

import { byId, formatCount, formatMoney, h, icon, link, tell } from "./elements.js";
import { FILTERS, hasPhoto, isFiltered, withoutFilters } from "./history.js";

export const SEPARATOR = " / "; // between the levels of a category's path
const MOST_PLACES = 6;
const MOST_CATEGORIES = 15; // at one level, until all are asked for
const INPUTS = ["min_price", "max_price", "location"];

const form = byId("filters");
const dialog = byId("filters-dialog");
const wide = matchMedia("(min-width: 60rem)");

let choices = { categories: {}, towns: {}, counties: {}, price: null }; // of the whole catalogue
let isTyping = false; // in one of the fields, since it was last taken
let currency = null; // of the prices that are shown

export const lastName = (path) => path.split(SEPARATOR).at(-1);

// [{ path, count }] right below a category ("" is the root), those with most listings first.
function childrenOf(categories, parent) {
  const depth = parent ? parent.split(SEPARATOR).length : 0;
  const isBelow = (path) => path.split(SEPARATOR).length === depth + 1 && (!parent || path.startsWith(parent + SEPARATOR));
  return Object.entries(categories)
    .map(([path, count]) => ({ path, count }))
    .filter(({ path, count }) => count && isBelow(path))
    .sort((one, other) => other.count - one.count);
}

export const topCategories = () => childrenOf(choices.categories, "");

// The paths of categories that can be chosen, most listings first.
export const allCategories = () => Object.keys(choices.categories).sort();

// What the filters can be set to, as the service tells it; returns whether that is new.
export function setChoices(answer) {
  if (answer === choices) return false;
  choices = answer;
  currency ??= answer.price?.currency;
  const places = new Map([...Object.entries(answer.counties), ...Object.entries(answer.towns)].filter(([name]) => name));
  byId("place-filter").hidden = !places.size;
  byId("places").replaceChildren(
    ...Array.from(places, ([name, count]) => h("option", { value: name, label: `${name} (${formatCount(count)})` })));
  return true;
}

function choice(state, name, count, isChosen = false) {
  const number = count === null ? null : h("span", { class: "count" }, formatCount(count));
  return h("li", {}, link(state, { class: "choice", "aria-current": isChosen ? "true" : null }, h("span", {}, name), number));
}

function categoryChoices(state, counted) {
  const levels = state.category ? state.category.split(SEPARATOR) : [];
  const above = levels.map((name, at) => ({ name, path: levels.slice(0, at).join(SEPARATOR) }));
  const wayUp = (path) =>
    link({ ...state, category: path }, { class: "choice up" }, icon("back"), path ? lastName(path) : "All categories");
  const ways = above.map(({ path }) => h("li", {}, wayUp(path)));
  const below = childrenOf(counted ?? choices.categories, state.category);
  const item = ({ path, count }) => choice({ ...state, category: path }, lastName(path), counted ? count : null);
  const rest = below.slice(MOST_CATEGORIES).map(item);
  const list = h("ul", {},
    ways,
    levels.length ? choice(state, levels.at(-1), counted?.[state.category] ?? null, true) : null,
    h("li", {}, h("ul", { class: levels.length ? "below" : "" },
      below.slice(0, MOST_CATEGORIES).map(item),
      rest.length ? h("li", {}, h("details", {}, h("summary", {}, "All"), h("ul", {}, rest))) : null)));
  return [h("h3", {}, "Category"), list];
}

function priceChoices(state, counted) {
  if (!counted || !currency) return [];
  const money = (amount) => formatMoney(Math.round(amount), currency);
  return counted.filter(({ listings }) => listings).map(({ min, max, listings }) => {
    const name = max === null ? `${money(min)} or more` : min ? `${money(min)} – ${money(max)}` : `Below ${money(max)}`;
    const [from, to] = [min ? String(min) : "", max === null ? "" : String(max)];
    return choice({ ...state, min_price: from, max_price: to }, name, listings);
  });
}

function placeChoices(state, counted) {
  const places = Object.entries(counted ?? {}).filter(([name]) => name && name !== state.location);
  return places.sort(([, one], [, other]) => other - one).slice(0, MOST_PLACES)
    .map(([name, count]) => choice({ ...state, location: name }, name, count));
}

// `counts`: of the result, or null where it has none; `ofPrices`: the currency of its prices, where it is told.
export function showFilters(state, counts, ofPrices) {
  currency = ofPrices ?? currency;
  const held = document.activeElement?.closest?.("#filters a")?.getAttribute("href");
  for (const name of INPUTS) {
    const input = form.elements[name];
    if (input !== document.activeElement || !isTyping) input.value = state[name]; // an answer does not undo what is being typed
  }
  form.elements.min_score.checked = Boolean(state.min_score);
  byId("close-only").hidden = !state.q && !hasPhoto(state);
  byId("category-choices").replaceChildren(...categoryChoices(state, counts?.categories));
  byId("price-choices").replaceChildren(...(state.min_price || state.max_price ? [] : priceChoices(state, counts?.prices)));
  byId("place-choices").replaceChildren(...(state.location ? [] : placeChoices(state, counts?.counties)));
  tell(byId("price-error"), "");
  const count = FILTERS.filter((name) => state[name]).length;
  byId("filter-count").textContent = count ? ` (${count})` : "";
  byId("clear-filters").hidden = !count;
  if (held) form.querySelector(`a[href="${CSS.escape(held)}"]`)?.focus();
}

// "1,200.50", "1.200,50" or "£1,200" as people type it -> "1200.50"; empty where it is no price.
function typedPrice(text) {
  const digits = text.replace(/[^\d.,]/g, "");
  const [, whole, cents = ""] = /^(.*?)(?:[.,](\d{1,2}))?$/.exec(digits);
  const number = whole.replace(/[.,]/g, "");
  return number || cents ? `${number || 0}${cents && `.${cents}`}` : "";
}

function typedFilters() {
  const { min_price: low, max_price: high, location, min_score: close } = form.elements;
  return {
    min_price: typedPrice(low.value), max_price: typedPrice(high.value),
    location: location.value.trim(), min_score: close.checked ? close.value : "",
  };
}

// Calls `change` with the filters that are typed, or says what is wrong with them.
function takeTyped(change) {
  const typed = typedFilters();
  isTyping = false;
  const isUpsideDown = typed.min_price && typed.max_price && Number(typed.min_price) > Number(typed.max_price);
  if (isUpsideDown) {
    const swap = () => change({ ...typed, min_price: typed.max_price, max_price: typed.min_price });
    tell(byId("price-error"), "The lowest price is above the highest.");
    byId("price-error").append(h("button", { type: "button", onclick: swap }, "Swap them"));
    return false;
  }
  change(typed);
  return true;
}

export function followFilters(change) {
  form.addEventListener("input", () => { isTyping = true; });
  form.addEventListener("change", () => takeTyped(change));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (takeTyped(change)) dialog.close();
  });
  form.querySelector("button[data-close]").addEventListener("click", () => dialog.close());
  byId("clear-filters").addEventListener("click", () => change(withoutFilters({})));
  byId("open-filters").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
  const put = () => {
    dialog.close();
    (wide.matches ? byId("filters-aside") : dialog).append(form);
  };
  wide.addEventListener("change", put);
  put();
}

export function closeFilters() {
  dialog.close();
}

function priceText({ min_price: low, max_price: high }) {
  const money = (amount) => (currency ? formatMoney(Number(amount), currency) : amount);
  if (low && high) return `${money(low)} – ${money(high)}`;
  return low ? `From ${money(low)}` : `Up to ${money(high)}`;
}

// One for each filter that is set: following it takes the filter away.
export function chips(state) {
  const chip = (text, without) => {
    const attributes = { class: "chip", "aria-label": `Remove the filter ${text}` };
    return h("li", {}, link({ ...state, ...without }, attributes, h("span", {}, text), icon("close")));
  };
  return [
    state.category && chip(lastName(state.category), { category: "" }),
    (state.min_price || state.max_price) && chip(priceText(state), { min_price: "", max_price: "" }),
    state.location && chip(state.location, { location: "" }),
    state.min_score && chip("Close matches only", { min_score: "" }),
  ].filter(Boolean);
}

// Ways to widen filters that leave nothing, one at a time.
export function widerFilters(state) {
  if (!isFiltered(state)) return [];
  const levels = state.category.split(SEPARATOR);
  const above = levels.slice(0, -1).join(SEPARATOR);
  const ways = [
    (state.min_price || state.max_price) && [{ min_price: "", max_price: "" }, "Any price"],
    state.location && [{ location: "" }, "Anywhere"],
    state.category && [{ category: above }, above ? `All of ${lastName(above)}` : "All categories"],
    state.min_score && [{ min_score: "" }, "Weaker matches too"],
    [withoutFilters({}), "Search without filters"],
  ];
  return ways.filter(Boolean).map(([change, name]) => link({ ...state, ...change }, { class: "chip" }, name));
}
