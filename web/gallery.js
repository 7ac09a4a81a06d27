// The photos of a listing: a strip that is swiped, stepped through by buttons and arrow keys, and seen large.

import { h, icon, photo } from "./elements.js";

const SIZES = "(min-width: 60rem) 40rem, 100vw";

function zoomed(imageId, alt, closed) {
  const image = photo(imageId, alt);
  const state = { "aria-label": "Closer, or whole", "aria-pressed": "false" };
  const toggle = h("button", { type: "button", class: "zoom-photo", ...state }, image);
  toggle.addEventListener("click", () => {
    const isClose = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", String(isClose));
    if (isClose) toggle.parentNode.scrollTo((toggle.scrollWidth - innerWidth) / 2, (toggle.scrollHeight - innerHeight) / 2);
  });
  const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close the photo" }, icon("close"));
  const dialog = h("dialog", { class: "zoom", "aria-label": alt }, h("div", { class: "zoom-stage" }, toggle), close);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    closed();
  });
  return dialog;
}

// `asQuestion`: image id -> a link that looks for what is like it.
export function gallery(photos, asQuestion) {
  if (!photos.length) return h("div", { class: "gallery" }, h("div", { class: "strip" }, photo(null)));
  const alt = (at) => (photos.length > 1 ? `Photo ${at + 1} of ${photos.length}` : "Its photo");
  let at = 0;
  const slides = photos.map(({ image_id: id }, i) =>
    h("li", { class: "slide" }, photo(id, alt(i), { sizes: SIZES, ...(i ? { isLazy: true } : { fetchpriority: "high" }) })));
  const strip = h("ul", { class: "strip", tabindex: 0, "aria-label": "Photos" }, slides);
  const counter = h("p", { class: "counter", "aria-live": "polite" });
  const lens = h("div", { class: "lens" });
  const thumbs = photos.map(({ image_id: id }, i) =>
    h("button", { type: "button", "aria-label": `Show photo ${i + 1}`, onclick: () => show(i) },
      photo(id, "", { sizes: "4.5rem" })));

  function mark(i) {
    at = i;
    counter.textContent = `${at + 1} / ${photos.length}`;
    thumbs.forEach((thumb, j) => thumb.setAttribute("aria-pressed", String(j === at)));
    lens.replaceChildren(asQuestion(photos[at].image_id));
  }

  function show(i) {
    mark((i + photos.length) % photos.length);
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    strip.scrollTo({ left: at * strip.clientWidth, behavior: isCalm ? "auto" : "smooth" });
  }

  const toEnlarge = { class: "icon-button enlarge", "aria-label": "See the photo large" };
  const enlarge = h("button", { type: "button", ...toEnlarge }, icon("zoom"));
  const open = () => {
    const dialog = zoomed(photos[at].image_id, alt(at), () => enlarge.focus({ preventScroll: true }));
    box.append(dialog);
    dialog.showModal();
  };
  enlarge.addEventListener("click", open);
  strip.addEventListener("click", open);
  const markShown = () => mark(Math.round(strip.scrollLeft / Math.max(strip.clientWidth, 1)));
  strip.addEventListener("onscrollend" in strip ? "scrollend" : "scroll", markShown);
  const step = (by, label) => {
    const [place, sign] = by < 0 ? ["previous", "back"] : ["next", "forward"];
    const attributes = { type: "button", class: `icon-button step ${place}`, "aria-label": label };
    return h("button", { ...attributes, onclick: () => show(at + by) }, icon(sign));
  };
  const several = photos.length > 1;
  const box = h("div", { class: "gallery" },
    h("div", { class: "stage" }, strip, enlarge, lens,
      several ? [step(-1, "Previous photo"), step(1, "Next photo"), counter] : null),
    several ? h("div", { class: "thumbs" }, thumbs) : null);
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !several) return;
    event.preventDefault();
    show(at + by);
  });
  mark(0);
  return box;
}
