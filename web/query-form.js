// The form of a search: its words and filters, the categories and places to choose from, and how many filters are set.

import { byId, formatCount, h, link } from "./elements.js";
import { FILTERS, withoutFilters } from "./history.js";

export const SEPARATOR = " / "; // between the levels of a category's path
const INPUTS = ["q", "min_price", "max_price", "location", "min_score"]; // the category has its menus instead

const form = byId("search-form");

let children = new Map(); // path of a category ("" is the root) -> [{ path, name, count }] of those right below it

function childrenOf(categories) {
  const below = new Map();
  for (const [path, count] of Object.entries(categories)) {
    const cut = path.lastIndexOf(SEPARATOR);
    const parent = cut < 0 ? "" : path.slice(0, cut);
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push({ path, name: cut < 0 ? path : path.slice(cut + SEPARATOR.length), count });
  }
  return below;
}

// One menu for each level down to the chosen category, and one for what lies below it.
function categoryMenus(category) {
  const levels = category ? category.split(SEPARATOR) : [];
  const menus = [];
  for (let depth = 0; depth <= levels.length; depth++) {
    const parent = levels.slice(0, depth).join(SEPARATOR);
    const chosen = levels.slice(0, depth + 1).join(SEPARATOR);
    const below = children.get(parent) ?? [];
    if (!below.length && depth === levels.length && depth) break;
    const isListed = chosen === parent || below.some(({ path }) => path === chosen);
    const options = [
      h("option", { value: parent }, depth ? "All of it" : "All categories"),
      ...below.map(({ path, name, count }) =>
        h("option", { value: path, selected: path === chosen }, `${name} (${formatCount(count)})`)),
      isListed ? null : h("option", { value: category, selected: true }, category),
    ];
    const label = h("span", {}, depth ? `In ${levels[depth - 1]}` : "Category");
    menus.push(h("label", { class: "field" }, label, h("select", { name: "level" }, options)));
    if (!isListed) break;
  }
  return menus;
}

function placeOptions({ counties, towns }) {
  const places = new Map([...Object.entries(counties), ...Object.entries(towns)].filter(([name]) => name));
  return Array.from(places, ([name, count]) => h("option", { value: name, label: `${name} (${formatCount(count)})` }));
}

// What the filters can be set to, as the service tells it.
export function setChoices(choices) {
  children = childrenOf(choices.categories);
  byId("places").replaceChildren(...placeOptions(choices));
}

export function showCategoryMenus(category) {
  const box = byId("category-levels");
  const focused = [...box.querySelectorAll("select")].indexOf(document.activeElement);
  box.replaceChildren(...categoryMenus(category));
  box.querySelectorAll("select")[focused]?.focus();
}

export function fillForm(state) {
  for (const name of INPUTS) form.elements[name].value = state[name];
  const count = FILTERS.filter((name) => state[name]).length;
  byId("filter-count").textContent = count ? ` (${count})` : "";
  byId("clear-filters").hidden = !count;
  showCategoryMenus(state.category);
}

export function typedValues() {
  const values = new FormData(form);
  return Object.fromEntries(INPUTS.map((name) => [name, (values.get(name) ?? "").trim()]));
}

// Calls `search` with what changes beside the values that are typed.
export function followForm(search) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search({});
  });
  byId("filters").addEventListener("change", (event) => {
    if (!form.reportValidity()) return;
    search(event.target.name === "level" ? { category: event.target.value } : {});
  });
  byId("clear-filters").addEventListener("click", () => {
    search(withoutFilters({}));
    form.elements.q.focus();
  });
}

// The filters are open where there is room for them.
export function foldFilters() {
  const wide = matchMedia("(min-width: 48rem)");
  const fold = () => byId("filters").toggleAttribute("open", wide.matches);
  wide.addEventListener("change", fold);
  fold();
}

// What the first page shows before anything is asked; nothing until the categories are there.
export function welcome() {
  const top = children.get("") ?? [];
  if (!top.length) return "";
  const items = top.map(({ path, name, count }) =>
    h("li", {}, link({ category: path }, {}, h("span", {}, name), h("span", { class: "count" }, formatCount(count)))));
  return h(
    "section",
    { class: "browse", "aria-labelledby": "browse-title" },
    h("h2", { id: "browse-title" }, "Or look around"),
    h("ul", {}, items),
  );
}
