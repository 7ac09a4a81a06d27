// The elements that every view is built of: made from values, so that nothing the service answers is read as markup.

import { address } from "./history.js";

const CARD_SIDE = 400; // pixels of the longest side of the copy for cards
const NEAR = 500; // pixels from the window at which a photo is loaded: browsers' own lazy loading takes thousands
const number = new Intl.NumberFormat();
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "long", timeZone: "UTC" });

export const formatCount = (count) => number.format(count);
export const formatDay = (iso) => (/^\d{4}-\d\d-\d\d/.test(iso ?? "") ? day.format(new Date(iso)) : null);
export const formatPercent = (share) => (share < 0.01 ? "under 1%" : `${Math.round(share * 100)}%`);

export function formatMoney(amount, currency, { whole = false } = {}) {
  const digits = whole && amount >= 1 ? { maximumFractionDigits: 0 } : { trailingZeroDisplay: "stripIfInteger" };
  return new Intl.NumberFormat(undefined, { style: "currency", currency, ...digits }).format(amount);
}

export const byId = (id) => document.getElementById(id);

// An element. An attribute that begins with "on" is a listener; children that are strings become text nodes.
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// An element whose place or size is a share of its parent's, from 0 to 1.
export function placed(node, shares) {
  for (const [property, share] of Object.entries(shares)) node.style.setProperty(property, `${100 * share}%`);
  return node;
}

export function link(state, attributes, ...children) {
  return h("a", { href: address(state), ...attributes }, ...children);
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `/web/icons.svg#${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

const loads = new WeakMap(); // photo that is not near yet -> what loads it
const nearing = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    nearing.unobserve(target);
    loads.get(target)();
  }
}, { rootMargin: `${NEAR}px` });

function loadNear(image, load) {
  loads.set(image, load);
  nearing.observe(image);
}

export const displayUrl = (imageId) => `/images/${encodeURIComponent(imageId)}/display`;

// A photo of this service, or the sign that there is none: no other address is ever loaded.
export function photo(imageId, alt, { sizes, isLazy, ...attributes } = {}) {
  const missing = () => h("span", { class: "no-photo", role: "img", "aria-label": "No photo" }, icon("no-photo"));
  if (!/^[\w-]{1,64}$/.test(imageId ?? "")) return missing();
  const url = displayUrl(imageId);
  const srcset = sizes ? `/images/${encodeURIComponent(imageId)}/card ${CARD_SIDE}w, ${url} 800w` : null;
  const image = h("img", { alt, decoding: "async", ...attributes });
  // sizes and srcset go before src, or the larger copy is asked for first
  const load = () => {
    for (const [name, value] of Object.entries({ sizes, srcset, src: url })) if (value) image.setAttribute(name, value);
  };
  image.addEventListener("error", () => image.replaceWith(missing()));
  if (isLazy) loadNear(image, load);
  else load();
  return image;
}

export function price(listing) {
  if (listing.price === null) return h("span", { class: "price" }, "No price");
  const unlikely = !listing.price_plausible && listing.price !== 0;
  return h(
    "span",
    { class: "price" },
    listing.price === 0 ? "Free" : formatMoney(listing.price, listing.currency),
    unlikely ? h("span", { class: "note" }, "price unlikely") : null,
  );
}

export const place = (listing) => [listing.town, listing.county].filter(Boolean).join(", ");

// One sentence about a failure, with the way to try again.
export function alertLine(sentence, retry) {
  const again = retry ? h("button", { type: "button", onclick: retry }, "Try again") : null;
  return h("div", { class: "alert", role: "alert" }, h("p", {}, sentence), again);
}

// Sets or clears an alert that is part of the page.
export function tell(alert, sentence, retry) {
  alert.replaceChildren(...(sentence ? alertLine(sentence, retry).childNodes : []));
  alert.hidden = !sentence;
}

export function setBusy(target, isBusy) {
  target.setAttribute("aria-busy", String(isBusy));
}
