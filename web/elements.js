// The elements that every view is built of: made from values, so that nothing the service answers is read as markup.

import { address } from "./history.js";

const moneyOf = (currency) =>
  new Intl.NumberFormat("en-GB", { style: "currency", currency, trailingZeroDisplay: "stripIfInteger" });
const number = new Intl.NumberFormat("en-GB");

export const formatCount = (count) => number.format(count);

export const byId = (id) => document.getElementById(id);

// An element. An attribute that begins with "on" is a listener; children that are strings become text nodes.
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
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

// A photo of this service, or the sign that there is none: no other address is ever loaded.
export function photo(url, alt, options = {}) {
  const missing = () => h("span", { class: "no-photo", role: "img", "aria-label": "No photo" }, icon("no-photo"));
  if (!/^\/images\/[\w-]+\.jpg$/.test(url ?? "")) return missing();
  const image = h("img", { src: url, alt, width: 256, height: 256, ...options });
  image.addEventListener("error", () => image.replaceWith(missing()));
  return image;
}

export function price(listing) {
  if (listing.price === null) return h("span", { class: "price" }, "No price");
  const unlikely = !listing.price_plausible && listing.price !== 0;
  return h(
    "span",
    { class: "price" },
    listing.price === 0 ? "Free" : moneyOf(listing.currency).format(listing.price),
    unlikely ? h("span", { class: "note" }, "price unlikely") : null,
  );
}

export const place = (listing) => [listing.town, listing.county].filter(Boolean).join(", ");

export function alertLine(sentence) {
  return h("p", { class: "alert", role: "alert" }, sentence);
}

// Sets or clears the sentence of an alert that is part of the page.
export function tell(alert, sentence) {
  alert.textContent = sentence;
  alert.hidden = !sentence;
}

export function setBusy(target, isBusy) {
  target.setAttribute("aria-busy", String(isBusy));
}
