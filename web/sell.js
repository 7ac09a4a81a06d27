// What a thing to be sold is, and what it could cost: a category, a price, and listings like it, all of which can be changed.

import { askForComparable, askForEstimate } from "./api.js";
import { cards, skeleton } from "./cards.js";
import { alertLine, byId, formatMoney, formatPercent, h, link, placed, setBusy, tell } from "./elements.js";
import { allCategories, SEPARATOR } from "./filters.js";
import { hasPhoto, reachScroll } from "./history.js";
import { photoToAsk } from "./photo-question.js";
import { priceChart, rangeText } from "./price-chart.js";

const LIKELY_CATEGORIES = 4;
const SOME = 4; // comparable prices from which a place among them is told

const [status, prediction, error] = ["sell-status", "prediction", "sell-error"].map(byId);

function categoryOption({ category, probability }, isChosen) {
  const levels = category.split(SEPARATOR);
  const bar = placed(h("span", {}), { width: probability });
  const above = levels.slice(0, -1).map((name) => [h("span", { class: "above" }, name), " › "]).flat();
  return h("li", {}, h("label", { class: "likely" },
    h("input", { type: "radio", name: "category", value: category, checked: isChosen }),
    h("span", { class: "likely-name" }, above, levels.at(-1)),
    h("strong", {}, formatPercent(probability)),
    h("span", { class: "chance", "aria-hidden": "true" }, bar)));
}

// The category to sell in: the likely ones, or any other. `change` is called with its path.
function categoryPanel(likely, change) {
  const other = h("select", { name: "other", "aria-label": "Another category" },
    h("option", { value: "" }, "Another category…"),
    allCategories().map((path) => h("option", { value: path }, path.split(SEPARATOR).join(" › "))));
  const list = h("ol", { class: "likelies" }, likely.slice(0, LIKELY_CATEGORIES).map((one, at) => categoryOption(one, at === 0)));
  list.addEventListener("change", (event) => {
    other.value = "";
    change(event.target.value);
  });
  other.addEventListener("change", () => {
    if (!other.value) return;
    for (const radio of list.querySelectorAll("input")) radio.checked = false;
    change(other.value);
  });
  return h("section", { class: "panel", "aria-labelledby": "category-title" },
    h("h2", { id: "category-title" }, "Category"), list, other);
}

function placeAmong(price, others) {
  if (!price || others.length < SOME) return "";
  const dearer = others.filter((other) => other > price).length;
  return `Cheaper than ${dearer} of ${others.length} listings like it.`;
}

// The range, and a price of one's own drawn on it and on the prices of the listings beside.
function pricePanel(range) {
  const telling = range.is_informative;
  const headline = telling ? rangeText(range) : "Hard to tell";
  const [low, median, high] = ["low", "median", "high"].map((name) => formatMoney(range[name], range.currency, { whole: true }));
  const hint = telling
    ? `Half of such things cost less than ${median}; eight in ten are in this range.`
    : `Such things cost anything from ${low} to ${high}. Add a photo, the brand or the model, or go by the listings below.`;
  const input = h("input", { inputmode: "decimal", maxlength: 12, "aria-describedby": "price-place" });
  if (telling) input.value = String(Math.round(range.median));
  const chart = h("div", {});
  const where = h("p", { class: "hint", id: "price-place", role: "status" });
  let others = [];
  const draw = () => {
    const price = Number(input.value.replace(",", ".").replace(/[^\d.]/g, "")) || null;
    const drawn = telling ? range : spread(range, others);
    chart.replaceChildren(...(telling || others.length ? [priceChart(drawn, price, others)] : []));
    where.textContent = placeAmong(price, others);
  };
  input.addEventListener("input", draw);
  draw();
  const node = h("section", { class: "panel", "aria-labelledby": "price-title" },
    h("h2", { id: "price-title" }, "Price"),
    h("p", { class: "range-text" }, headline), h("p", { class: "hint" }, hint), chart,
    h("label", { class: "field own-price" }, h("span", {}, "Your price"), input), where);
  const showOthers = (prices) => {
    others = prices;
    draw();
  };
  return { node, showOthers };
}

// The middle half of other listings' prices, for a range that tells nothing.
function spread({ currency }, others) {
  const sorted = [...others].sort((one, other) => one - other);
  const at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  return { low: at(0.25), high: at(0.75), currency };
}

function showEstimate(answer, state) {
  const { categories, paths, price } = answer;
  const likely = paths.length ? paths : categories;
  const heading = h("h2", { id: "comparable-title" }, "Listings like it");
  const comparable = h("section", { "aria-labelledby": "comparable-title" }, heading);
  const panel = pricePanel(price);
  const show = (listings) => {
    panel.showOthers(listings.filter((one) => one.price && one.price_plausible).map((one) => one.price));
    const all = h("p", {}, link({ ...state, view: "" }, {}, "See all listings like it"));
    const none = h("p", {}, "There are none in this category yet.");
    comparable.replaceChildren(heading, listings.length ? cards(listings, { ...state, view: "" }, { heading: "h3" }) : none, all);
    reachScroll();
  };
  const change = (category) => {
    comparable.replaceChildren(heading, skeleton(4));
    askForComparable({ words: state.q, category }, {
      done: ({ results, nearest }) => show(results.length ? results : nearest),
      failed: (sentence) => comparable.replaceChildren(heading, alertLine(sentence, () => change(category))),
    });
  };
  prediction.replaceChildren(panel.node, categoryPanel(likely, change), comparable);
  show(answer.comparables);
}

export function showSell(state) {
  tell(error, "");
  if (!state.q && !hasPhoto(state)) {
    setBusy(prediction, false);
    status.textContent = "";
    const sentence = "The likely category, a price range and listings like yours will be shown here.";
    prediction.replaceChildren(h("p", { class: "empty" }, sentence));
    return;
  }
  status.textContent = hasPhoto(state) ? "Looking at the photo…" : "Reading…";
  setBusy(prediction, true);
  const photo = hasPhoto(state) ? () => photoToAsk(state) : null;
  askForEstimate({ words: state.q, photo, photoKey: `${state.photo} ${state.like} ${state.crop}` }, {
    done: (answer) => {
      setBusy(prediction, false);
      status.textContent = "An estimate from listings like it:";
      showEstimate(answer, state);
    },
    failed: (sentence) => {
      setBusy(prediction, false);
      status.textContent = "";
      tell(error, sentence, () => showSell(state));
    },
  });
}
