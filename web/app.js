// The page of the marketplace: the URL says what to show, the API answers, and whatever it answers is shown as text only.

const PAGE_SIZE = 24; // listings at a time
const MAX_ASKED = 96; // in one request; below the API's limit of 100
const MAX_RESULTS = 480;
const SIMILAR = 12;
const LIKELY_CATEGORIES = 5;
const ANSWERS_KEPT = 30; // for going back without asking again
const SEPARATOR = " / "; // between the levels of a category's path
const FILTERS = ["category", "min_price", "max_price", "location", "min_score"];
const FIELDS = ["view", "q", ...FILTERS, "k", "listing"]; // of the URL, in this order
const EVIDENCE = {
  photo: "looks alike",
  text: "reads alike",
  words: "has your words",
  category: "is the same kind of thing",
  price: "costs about the same",
  place: "is nearby",
};
const UNREACHABLE = "The service cannot be reached: check the connection, then try again.";

const byId = (id) => document.getElementById(id);
const views = { search: byId("search-view"), listing: byId("listing-view"), sell: byId("sell-view") };
const searchForm = byId("search-form");
const sellForm = byId("sell-form");


// Elements. Children that are strings become text nodes, so no answer is ever read as markup.

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `/web/icons.svg#${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function tell(alert, sentence) {
  alert.textContent = sentence;
  alert.hidden = !sentence;
}

function photo(url, alt, options = {}) {
  const missing = () => h("span", { class: "no-photo", role: "img", "aria-label": "No photo" }, icon("no-photo"));
  if (!/^\/images\/[\w-]+\.jpg$/.test(url ?? "")) return missing();
  const image = h("img", { src: url, alt, width: 256, height: 256, ...options });
  image.addEventListener("error", () => image.replaceWith(missing()));
  return image;
}

const pounds = new Intl.NumberFormat("en-GB", { style: "currency", currency: "GBP", trailingZeroDisplay: "stripIfInteger" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeZone: "UTC" });
const number = new Intl.NumberFormat("en-GB");

function price(listing) {
  if (listing.price === null) return h("span", { class: "price" }, "No price");
  const odd = !listing.price_plausible && listing.price !== 0;
  return h(
    "span",
    { class: "price" },
    listing.price === 0 ? "Free" : pounds.format(listing.price),
    odd ? h("span", { class: "note" }, "price unlikely") : null,
  );
}

const place = (listing) => [listing.town, listing.county].filter(Boolean).join(", ");


// The API

class ApiError extends Error {}

async function call(path, body, signal) {
  let response, text;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", body, signal });
    text = await response.text();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(UNREACHABLE);
  }
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new ApiError(`The service failed (status ${response.status}): try again.`);
  }
  if (!response.ok) throw new ApiError(typeof answer.detail === "string" ? answer.detail : "The service refused the request.");
  return answer;
}

const answers = new Map(); // what was asked -> the answer
const pages = new Map(); // a search -> { all: its listings so far, complete: whether there are no more }
const running = new Map(); // slot -> AbortController of its request

function stop(...slots) {
  for (const slot of slots) running.get(slot)?.abort();
}

// Ask for one slot of the page; an older request of the same slot is given up. `key` names the question.
async function ask(slot, key, path, body, done, failed) {
  stop(slot);
  if (answers.has(key)) return done(answers.get(key));
  const controller = new AbortController();
  running.set(slot, controller);
  let answer;
  try {
    answer = await call(path, body, controller.signal);
  } catch (error) {
    if (error instanceof ApiError) failed(error.message);
    else if (error.name !== "AbortError") throw error;
    return;
  }
  if (controller.signal.aborted) return;
  answers.set(key, answer);
  if (answers.size > ANSWERS_KEPT) answers.delete(answers.keys().next().value);
  done(answer);
}

function formData(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  return form;
}

function queryString(fields) {
  return new URLSearchParams(Object.entries(fields).filter(([, value]) => value)).toString();
}


// The URL. A photo cannot stand in it: the history's entry holds its key, the photo itself stays in this tab.

const photos = new Map();

function remember(file) {
  const key = `${performance.timeOrigin}-${photos.size}`;
  photos.set(key, file);
  return key;
}

function stateOf(url) {
  const values = new URL(url, location.href).searchParams;
  return Object.fromEntries(FIELDS.map((name) => [name, values.get(name) ?? ""]));
}

function address(state) {
  const query = queryString(Object.fromEntries(FIELDS.map((name) => [name, state[name]])));
  return query ? `/?${query}` : "/";
}

const pick = (state, names) => Object.fromEntries(names.map((name) => [name, state[name]]));
const viewOf = (state) => (state.listing ? "listing" : state.view === "sell" ? "sell" : "search");

function go(state, photoKey = null) {
  const url = address(state);
  const entry = { photo: photoKey, scroll: 0, from: location.pathname + location.search };
  if (url === entry.from && photoKey === (history.state?.photo ?? null)) {
    history.replaceState({ ...entry, from: history.state?.from }, "", url);
  } else {
    history.replaceState({ ...history.state, scroll: scrollY }, "");
    history.pushState(entry, "", url);
  }
  const before = shown;
  show();
  if (before.view !== shown.view || before.state.listing !== shown.state.listing) {
    scrollTo(0, 0);
    views[shown.view].querySelector("h1")?.focus({ preventScroll: true });
  }
}

// A plain link, to be shared or opened elsewhere; a plain click on it stays in the page.
function link(state, attributes, ...children) {
  return h("a", { href: address(state), ...attributes }, ...children);
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[href^='/']");
  const plain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!anchor || !plain || event.defaultPrevented || new URL(anchor.href).pathname !== "/") return;
  event.preventDefault();
  if (anchor.classList.contains("back") && anchor.getAttribute("href") === history.state?.from) history.back();
  else go(stateOf(anchor.href), "keepPhoto" in anchor.dataset ? history.state?.photo ?? null : null);
});

// A jump within the page would be an entry of the history, without its photo.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});

let shown = { view: null, state: stateOf("/") };

function show() {
  const state = stateOf(location.href);
  const view = viewOf(state);
  stop("results", "listing", "similar", "prediction");
  for (const [name, section] of Object.entries(views)) section.hidden = name !== view;
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.dataset.view === view) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  shown = { view, state };
  const photoKey = history.state?.photo ?? null;
  ({ search: showSearch, listing: showListing, sell: showSell })[view](state, photos.get(photoKey) ?? null, photoKey);
}

history.scrollRestoration = "manual";
addEventListener("popstate", () => {
  const left = shown.state.listing;
  show();
  const from = left && views[shown.view].querySelector(`a[data-listing="${CSS.escape(left)}"]`);
  if (from) from.focus({ preventScroll: true });
  scrollTo(0, history.state?.scroll ?? 0);
});


// Photos: chosen, dropped or pasted

function photoField(root, changed) {
  root.append(byId("photo-field").content.cloneNode(true));
  const [choose, input, chosen, canvas, remove] = [".pick", "input", ".picked", "canvas", "button"].map((selector) => root.querySelector(selector));
  root.querySelector(".pick-label").textContent = root.dataset.label;
  let current = null;

  async function draw(file) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      return; // a kind that this browser cannot draw: the service may still know it
    }
    if (file !== current) return;
    const scale = Math.min(1, 320 / Math.max(bitmap.width, bitmap.height));
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    canvas.hidden = false;
  }

  function set(file) {
    if (file === current) return;
    current = file;
    canvas.hidden = true;
    const hadFocus = document.activeElement === input;
    choose.hidden = Boolean(file);
    chosen.hidden = !file;
    if (file && hadFocus) remove.focus();
    root.querySelector(".picked-name").textContent = file?.name ?? "";
    if (file) draw(file);
  }

  input.addEventListener("change", () => {
    const file = input.files[0];
    input.value = ""; // choosing the same file again is a change again
    if (file) changed(file);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return; // which would send the form
    event.preventDefault();
    input.click();
  });
  remove.addEventListener("click", () => {
    changed(null);
    input.focus();
  });
  return { set };
}

const fields = {
  search: photoField(searchForm.querySelector(".photo-field"), (file) => search({}, file && remember(file))),
  sell: photoField(sellForm.querySelector(".photo-field"), (file) => estimate(file && remember(file))),
};

function take(file) {
  if (shown.view === "sell") estimate(remember(file));
  else if (shown.view === "search") search({}, remember(file));
  else go({}, remember(file));
}

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
let dragDepth = 0; // dragenter and dragleave also fire for every child
function dragging(change) {
  dragDepth = change ? Math.max(0, dragDepth + change) : 0;
  document.body.classList.toggle("dragging", dragDepth > 0);
}
addEventListener("dragenter", (event) => carriesFiles(event) && dragging(1));
addEventListener("dragleave", (event) => carriesFiles(event) && dragging(-1));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  dragging(0);
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (!file) return;
  event.preventDefault();
  take(file);
});


// Results

// The score and its parts in whole percent, rounded so that what is shown adds up (largest remainder).
function percentages(score, parts) {
  const total = Math.round(score * 100);
  const exact = Object.entries(parts).map(([kind, value]) => ({ kind, rest: (value * 100) % 1, percent: Math.floor(value * 100) }));
  let left = total - exact.reduce((sum, { percent }) => sum + percent, 0);
  for (const part of exact.toSorted((a, b) => b.rest - a.rest)) if (left-- > 0) part.percent += 1;
  return { total, parts: exact };
}

function scoreBar(result) {
  const { total, parts } = percentages(result.score, result.parts);
  const bar = h("span", { class: "score-bar", "aria-hidden": "true" });
  for (const { kind } of parts.filter((part) => part.percent)) {
    const segment = h("span", { "data-kind": kind });
    segment.style.setProperty("width", `${result.parts[kind] * 100}%`);
    bar.append(segment);
  }
  return h(
    "p",
    { class: "score" },
    h("strong", {}, `${total}% match`),
    bar,
    h("span", { class: "parts" }, parts.filter((part) => part.percent).map(({ kind, percent }) => h("span", { "data-kind": kind }, `${kind} ${percent}%`))),
  );
}

function card(result, kept, heading) {
  return h(
    "li",
    { class: "card" },
    h("div", { class: "card-photo" }, photo(result.photo_url, "", { loading: "lazy" })),
    h(
      "div",
      { class: "card-text" },
      h(heading, {}, link({ ...kept, listing: result.product_id }, { "data-listing": result.product_id, "data-keep-photo": true }, result.name)),
      price(result),
      h("p", { class: "where" }, place(result) || "Place unknown"),
      h("p", { class: "path" }, result.category),
      result.duplicates ? h("p", { class: "copies" }, `Listed ${number.format(result.duplicates + 1)} times`) : null,
      scoreBar(result),
    ),
  );
}

function grid(results, kept, heading = "h2") {
  return h("ul", { class: "grid" }, results.map((result) => card(result, kept, heading)));
}

function legend(results) {
  const kinds = Object.keys(EVIDENCE).filter((kind) => results.some((result) => kind in result.parts));
  return h("p", { class: "legend" }, "Why it matches:", kinds.map((kind) => h("span", { "data-kind": kind }, h("b", {}, kind), ` ${EVIDENCE[kind]}`)));
}

function skeleton(n) {
  return h("div", { class: "grid skeleton", "aria-hidden": "true" }, Array.from({ length: n }, () => h("div", { class: "card" })));
}

function busy(target, isBusy) {
  target.setAttribute("aria-busy", String(isBusy));
}


// Finding

function search(changes, photoKey = history.state?.photo ?? null) {
  const form = new FormData(searchForm);
  const typed = Object.fromEntries(["q", "min_price", "max_price", "location", "min_score"].map((name) => [name, (form.get(name) ?? "").trim()]));
  go({ category: shown.view === "search" ? shown.state.category : "", ...typed, ...changes }, photoKey);
}

searchForm.addEventListener("submit", (event) => {
  event.preventDefault();
  search({});
});
byId("filters").addEventListener("change", (event) => {
  if (!searchForm.reportValidity()) return;
  search(event.target.name === "level" ? { category: event.target.value } : {});
});
byId("clear-filters").addEventListener("click", () => {
  search(Object.fromEntries(FILTERS.map((name) => [name, ""])));
  searchForm.elements.q.focus();
});

function showSearch(state, file, photoKey) {
  for (const name of ["q", "min_price", "max_price", "location", "min_score"]) searchForm.elements[name].value = state[name];
  fields.search.set(file);
  showFilters(state);
  const asked = Boolean(state.q || file);
  document.title = state.q ? `${state.q} – Marketplace` : "Marketplace";
  views.search.classList.toggle("asked", asked);
  tell(byId("search-error"), "");
  const [status, results] = [byId("search-status"), byId("results")];
  if (!asked) {
    status.textContent = photoKey
      ? "This search had a photo, which is not kept when a page is reloaded: choose it again."
      : FILTERS.some((name) => state[name]) ? "Filters narrow a search: add words or a photo." : "";
    busy(results, false);
    results.replaceChildren(welcome());
    return;
  }
  const k = Math.min(Math.max(Number.parseInt(state.k, 10) || PAGE_SIZE, 1), MAX_RESULTS);
  const question = `${photoKey} ${address({ ...state, k: "", listing: "" })}`;
  const render = (all, complete) => {
    busy(results, false);
    status.textContent = summary(Math.min(all.length, k), complete && all.length <= k, state, file);
    const before = document.activeElement?.classList.contains("more") ? results.querySelectorAll(".card").length : -1;
    results.replaceChildren(...(all.length ? found(all.slice(0, k), complete && all.length <= k, k, state) : [nothing(state)]));
    results.querySelectorAll(".card a")[before]?.focus({ preventScroll: true });
  };
  const failed = (sentence) => {
    busy(results, false);
    status.textContent = "";
    results.replaceChildren();
    tell(byId("search-error"), sentence);
  };
  // Only what is not there yet is asked for: the order of the listings does not change from page to page.
  const askFrom = (all) => {
    const wanted = Math.min(k - all.length, MAX_ASKED);
    const fields = { ...pick(state, FILTERS), k: wanted, offset: all.length };
    const path = file ? "/predict/similar_images" : `/search?${queryString({ q: state.q, ...fields })}`;
    const body = file ? formData({ image: file, text: state.q, ...fields }) : undefined;
    const done = (answer) => {
      const more = { all: [...all, ...answer.results], complete: answer.results.length < wanted };
      pages.set(question, more);
      if (pages.size > ANSWERS_KEPT) pages.delete(pages.keys().next().value);
      if (more.complete || more.all.length >= k) render(more.all, more.complete);
      else askFrom(more.all);
    };
    ask("results", `${question} ${wanted} ${all.length}`, path, body, done, failed);
  };
  const known = pages.get(question) ?? { all: [], complete: false };
  if (known.complete || known.all.length >= k) return render(known.all, known.complete);
  status.textContent = file ? "Looking at the photo…" : "Looking…";
  busy(results, true);
  if (!results.querySelector(".card a")) results.replaceChildren(skeleton(8));
  askFrom(known.all);
}

function summary(n, all, state, file) {
  const like = [file && "your photo", state.q && `“${state.q}”`].filter(Boolean).join(" and ");
  if (!n) return `Nothing found for ${like}.`;
  return `${all ? "" : "The best "}${n} ${n === 1 ? "listing" : "listings"} for ${like}, best first.`;
}

function found(results, all, k, state) {
  const parts = [legend(results), grid(results, state)];
  if (!all && k < MAX_RESULTS) {
    const more = () => go({ ...state, k: String(Math.min(k + PAGE_SIZE, MAX_RESULTS)) }, history.state?.photo ?? null);
    parts.push(h("button", { type: "button", class: "more", onclick: more }, "Show more"));
  }
  return parts;
}

function nothing(state) {
  const filtered = FILTERS.some((name) => state[name]);
  return h(
    "div",
    { class: "empty" },
    h("p", {}, filtered ? "No listing matches within these filters: widen the price, the place, the category or the match." : "Try other or fewer words, or a photo."),
    filtered ? link({ ...state, ...Object.fromEntries(FILTERS.map((name) => [name, ""])) }, { "data-keep-photo": true }, "Search without filters") : null,
  );
}


// Filters

let children = new Map(); // path of a category ("" is the root) -> [{ path, name, count }]

function showFilters(state) {
  const set = FILTERS.filter((name) => state[name]).length;
  byId("filter-count").textContent = set ? ` (${set})` : "";
  byId("clear-filters").hidden = !set;
  showLevels(state.category);
}

// One menu for each level down to the chosen category, and one for what lies below it.
function showLevels(category) {
  const box = byId("category-levels");
  const focused = [...box.querySelectorAll("select")].indexOf(document.activeElement);
  const levels = category ? category.split(SEPARATOR) : [];
  const menus = [];
  for (let depth = 0; depth <= levels.length; depth++) {
    const parent = levels.slice(0, depth).join(SEPARATOR);
    const chosen = levels.slice(0, depth + 1).join(SEPARATOR);
    const below = children.get(parent) ?? [];
    if (!below.length && depth === levels.length && depth) break;
    const known = chosen === parent || below.some(({ path }) => path === chosen);
    const options = [
      h("option", { value: parent }, depth ? "All of it" : "All categories"),
      ...below.map(({ path, name, count }) => h("option", { value: path, selected: path === chosen }, `${name} (${number.format(count)})`)),
      known ? null : h("option", { value: category, selected: true }, category),
    ];
    menus.push(h("label", { class: "field" }, h("span", {}, depth ? `In ${levels[depth - 1]}` : "Category"), h("select", { name: "level" }, options)));
    if (!known) break;
  }
  box.replaceChildren(...menus);
  box.querySelectorAll("select")[focused]?.focus();
}

function welcome() {
  const top = children.get("") ?? [];
  if (!top.length) return "";
  return h(
    "section",
    { class: "browse", "aria-labelledby": "browse-title" },
    h("h2", { id: "browse-title" }, "Or look around"),
    h("ul", {}, top.map(({ path, name, count }) =>
      h("li", {}, link({ q: name, category: path }, {}, h("span", {}, name), h("span", { class: "count" }, number.format(count)))))),
  );
}

function fillChoices(choices) {
  children = new Map();
  for (const [path, count] of Object.entries(choices.categories)) {
    const cut = path.lastIndexOf(SEPARATOR);
    const parent = cut < 0 ? "" : path.slice(0, cut);
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push({ path, name: cut < 0 ? path : path.slice(cut + SEPARATOR.length), count });
  }
  const places = new Map([...Object.entries(choices.counties), ...Object.entries(choices.towns)].filter(([name]) => name));
  byId("places").replaceChildren(...Array.from(places, ([name, count]) => h("option", { value: name, label: `${name} (${number.format(count)})` })));
  if (shown.view !== "search") return;
  showLevels(shown.state.category);
  if (!views.search.classList.contains("asked")) byId("results").replaceChildren(welcome());
}


// One listing

function showListing(state) {
  const view = views.listing;
  const id = encodeURIComponent(state.listing);
  const back = { ...state, listing: "" };
  const wasAsked = Boolean(state.q || history.state?.photo);
  const top = link(back, { class: "back", "data-keep-photo": true }, icon("back"), wasAsked ? "Back to the results" : "Find something");
  document.title = "Marketplace";
  busy(view, true);
  view.replaceChildren(top, h("h1", { id: "listing-title", tabindex: -1, class: "fetching" }, "Fetching the listing…"));
  const done = (product) => {
    busy(view, false);
    document.title = `${product.name} – Marketplace`;
    const hadFocus = document.activeElement?.id === "listing-title";
    const more = h("section", { class: "similar", "aria-labelledby": "similar-title" }, h("h2", { id: "similar-title" }, "More like this"), skeleton(4));
    view.replaceChildren(top, listing(product), more);
    if (hadFocus) byId("listing-title").focus({ preventScroll: true });
    const shownBelow = (...nodes) => more.replaceChildren(more.firstChild, ...nodes);
    const path = `/products/${id}/similar?k=${SIMILAR}`;
    ask("similar", path, path, undefined,
      ({ results }) => shownBelow(...(results.length ? [legend(results), grid(results, state, "h3")] : [h("p", {}, "Nothing like it yet.")])),
      (sentence) => shownBelow(h("p", { class: "alert", role: "alert" }, sentence)));
  };
  const failed = (sentence) => {
    busy(view, false);
    view.replaceChildren(top, h("h1", { id: "listing-title", tabindex: -1 }, "This listing cannot be shown"),
      h("p", { class: "alert", role: "alert" }, sentence));
  };
  ask("listing", `/products/${id}`, `/products/${id}`, undefined, done, failed);
}

function listing(product) {
  const levels = product.category.split(SEPARATOR);
  const crumbs = levels.map((name, depth) =>
    h("li", {}, link({ q: name, category: levels.slice(0, depth + 1).join(SEPARATOR) }, {}, name)));
  const posted = /^\d{4}-\d\d-\d\d/.test(product.posted_on ?? "") ? day.format(new Date(product.posted_on)) : null;
  return h(
    "div",
    { class: "listing" },
    gallery(product),
    h(
      "div",
      { class: "listing-text" },
      h("nav", { "aria-label": "Category" }, h("ol", { class: "crumbs" }, crumbs)),
      h("h1", { id: "listing-title", tabindex: -1 }, product.name),
      price(product),
      h("dl", {},
        h("div", {}, h("dt", {}, "Where"), h("dd", {}, place(product) || "Unknown")),
        posted ? h("div", {}, h("dt", {}, "Posted"), h("dd", {}, posted)) : null),
      h("h2", {}, "Description"),
      h("p", { class: "description" }, product.description || "None given."),
    ),
  );
}

function gallery(product) {
  const large = h("div", { class: "large" });
  const alt = (at) => (product.photos.length > 1 ? `Photo ${at + 1} of ${product.photos.length}` : "Its photo");
  const thumbs = product.photos.map(({ photo_url }, at) =>
    h("button", { type: "button", "aria-label": `Show photo ${at + 1}`, onclick: () => choose(at) }, photo(photo_url, "")));
  const choose = (at) => {
    large.replaceChildren(photo(product.photos[at]?.photo_url, alt(at)));
    thumbs.forEach((thumb, i) => thumb.setAttribute("aria-pressed", String(i === at)));
  };
  choose(0);
  return h("div", { class: "gallery" }, large, thumbs.length > 1 ? h("div", { class: "thumbs" }, thumbs) : null);
}


// Selling

function estimate(photoKey = history.state?.photo ?? null) {
  go({ view: "sell", q: sellForm.elements.q.value.trim() }, photoKey);
}

sellForm.addEventListener("submit", (event) => {
  event.preventDefault();
  estimate();
  if (!shown.state.q && !photos.has(history.state?.photo)) tell(byId("sell-error"), "Add a photo, some words, or both.");
});

function showSell(state, file, photoKey) {
  document.title = "Sell – Marketplace";
  sellForm.elements.q.value = state.q;
  fields.sell.set(file);
  tell(byId("sell-error"), "");
  const [status, prediction] = [byId("sell-status"), byId("prediction")];
  if (!state.q && !file) {
    status.textContent = "";
    prediction.replaceChildren(h("p", { class: "empty" }, "The likely categories and a price range will stand here."));
    return;
  }
  const done = (answer) => {
    busy(prediction, false);
    status.textContent = "An estimate from listings like it:";
    prediction.replaceChildren(...predicted(answer, state));
  };
  const failed = (sentence) => {
    busy(prediction, false);
    status.textContent = "";
    prediction.replaceChildren();
    tell(byId("sell-error"), sentence);
  };
  status.textContent = file ? "Looking at the photo…" : "Reading…";
  busy(prediction, true);
  ask("prediction", `sell ${photoKey} ${state.q}`, "/predict/listing", formData({ image: file, text: state.q }), done, failed);
}

function predicted({ categories, price: range }, state) {
  const money = new Intl.NumberFormat("en-GB", { style: "currency", currency: range.currency, maximumFractionDigits: range.high < 10 ? 2 : 0 });
  const marker = h("span", { class: "range-marker" });
  marker.style.setProperty("left", `${(100 * (range.median - range.low)) / Math.max(range.high - range.low, 1e-9)}%`);
  const percent = (probability) => (probability < 0.01 ? "under 1%" : `${Math.round(probability * 100)}%`);
  const row = ({ category, probability }) => {
    const bar = h("span", {});
    bar.style.setProperty("width", `${probability * 100}%`);
    return h("li", {}, h("span", {}, category), h("strong", {}, percent(probability)), h("span", { class: "chance", "aria-hidden": "true" }, bar));
  };
  return [
    h("section", { class: "panel", "aria-labelledby": "price-title" },
      h("h2", { id: "price-title" }, "Price"),
      h("p", { class: "range-text" }, `${money.format(range.low)} to ${money.format(range.high)}`),
      h("div", { class: "range", "aria-hidden": "true" }, marker),
      h("p", { class: "hint" }, `Half of such listings ask less than ${money.format(range.median)}; one in ten is below the range, one in ten above.`)),
    h("section", { class: "panel", "aria-labelledby": "category-title" },
      h("h2", { id: "category-title" }, "Category"),
      h("ol", { class: "chances" }, categories.slice(0, LIKELY_CATEGORIES).map(row))),
    h("p", {}, link({ q: state.q }, { "data-keep-photo": true }, "See listings like it")),
  ];
}


const wide = matchMedia("(min-width: 48rem)");
const fold = () => byId("filters").toggleAttribute("open", wide.matches);
wide.addEventListener("change", fold);
fold();
show();
ask("choices", "/filters", "/filters", undefined, fillChoices, (sentence) => {
  if (shown.view === "search") byId("search-status").textContent ||= sentence;
});
