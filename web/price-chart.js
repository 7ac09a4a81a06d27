// Prices on a line: the usual range as a bar, one price as a mark, and others as dots.

import { formatMoney, h, placed } from "./elements.js";

// Prices spread over decades: their logarithms spread evenly.
function scale(amounts) {
  const logs = amounts.map((amount) => Math.log(Math.max(amount, 0.5)));
  const [least, most] = [Math.min(...logs), Math.max(...logs)];
  const pad = Math.max(0.08 * (most - least), 0.1);
  return (amount) => (Math.log(Math.max(amount, 0.5)) - least + pad) / (most - least + 2 * pad);
}

// range: { low, high, currency }; price: the one that is asked, or null; others: prices of other listings.
export function priceChart(range, price, others = []) {
  const { low, high, currency } = range;
  const at = scale([low, high, ...(price ? [price] : []), ...others]);
  const money = (amount) => formatMoney(amount, currency, { whole: true });
  const band = placed(h("span", { class: "band" }), { left: at(low), width: at(high) - at(low) });
  const dots = others.map((other) => placed(h("span", { class: "dot" }), { left: at(other) }));
  const mark = price ? placed(h("span", { class: "price-mark" }), { left: at(price) }) : null;
  const ends = [low, high].map((amount) => placed(h("span", { class: "end" }, money(amount)), { left: at(amount) }));
  return h("div", { class: "price-chart", "aria-hidden": "true" },
    h("div", { class: "line" }, band, dots, mark), h("div", { class: "ends" }, ends));
}

export function rangeText({ low, high, currency }) {
  return `${formatMoney(low, currency, { whole: true })} – ${formatMoney(high, currency, { whole: true })}`;
}

export const VERDICTS = {
  low: "Lower than usual for such things",
  likely: "In the usual range for such things",
  high: "Higher than usual for such things",
};
