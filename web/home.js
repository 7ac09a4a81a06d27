// The first page: categories with a picture and the number of their listings, and what is new.

import { askForNewest, askForNewestOf } from "./api.js";
import { cards, skeleton } from "./cards.js";
import { alertLine, formatCount, h, link, photo } from "./elements.js";
import { topCategories } from "./filters.js";
import { reachScroll } from "./history.js";

const NEWEST = 24;

function tile({ path, count }) {
  const picture = h("span", { class: "tile-photo" });
  const text = h("span", { class: "tile-name" }, path, h("span", { class: "count" }, formatCount(count)));
  return { path, picture, node: h("li", {}, link({ category: path }, { class: "tile" }, picture, text)) };
}

function setPicture({ picture }, imageId) {
  picture.replaceChildren(photo(imageId, "", { sizes: "6rem", isLazy: true }));
}

// A category's picture is that of a new listing of it: among the newest of all, or else asked for.
function showPictures(tiles, newest) {
  for (const one of tiles) {
    const inIt = ({ image_id, category }) => image_id && (category === one.path || category.startsWith(`${one.path} / `));
    const found = newest.find(inIt);
    if (found) setPicture(one, found.image_id);
    else askForNewestOf(one.path, {
      done: ({ results }) => setPicture(one, results.find(({ image_id }) => image_id)?.image_id),
      failed: () => setPicture(one, null),
    });
  }
}

export function showHome(root) {
  const tiles = topCategories().map(tile);
  const categories = h("section", { "aria-labelledby": "categories-title" },
    h("h2", { id: "categories-title" }, "Categories"),
    h("ul", { class: "tiles" }, tiles.map(({ node }) => node)));
  const heading = h("div", { class: "head" },
    h("h2", { id: "newest-title" }, "Just in"), link({ sort: "newest" }, {}, "See all"));
  const newest = h("section", { "aria-labelledby": "newest-title" }, heading, skeleton(8));
  root.replaceChildren(...(tiles.length ? [categories] : []), newest);
  askForNewest(NEWEST, {
    done: ({ results }) => {
      newest.replaceChildren(heading, cards(results, {}, { heading: "h3" }));
      showPictures(tiles, results);
      reachScroll();
    },
    failed: (sentence) => newest.replaceChildren(heading, alertLine(sentence, () => showHome(root))),
  });
}
