// The moderators' page: what was rejected, odd prices, near duplicates, and listings whose words and photo disagree.

import { byId, formatCount, formatPercent, h, link, photo, place, price, setBusy, tell } from "./elements.js";
import { queryString } from "./query-string.js";

const PAGE_SIZE = 50;
const TITLE = document.title;
const STORED_KEY = "moderation-key"; // of this tab only
const TITLES = {
  "rejected-rows": "Rejected rows",
  "rejected-photos": "Rejected photos",
  "implausible-prices": "Implausible prices",
  "duplicates": "The same offer again",
  "category-disagreements": "Words and photo disagree",
};

const [keyForm, error, moderation, entries, status] =
  ["key-form", "moderate-error", "moderation", "entries", "list-status"].map(byId);

let lists = []; // [{ list, total, reasons }]

// The list and the reason that the address names.
function asked() {
  const values = new URLSearchParams(location.search);
  return { list: values.get("list") ?? lists[0]?.list, reason: values.get("reason") ?? "" };
}

class Refused extends Error {}

async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { "X-API-Key": sessionStorage.getItem(STORED_KEY) ?? "" } });
  } catch {
    throw new Refused("The service cannot be reached: check the connection, then try again.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) sessionStorage.removeItem(STORED_KEY);
  const said = await answer.json().catch(() => ({}));
  const sentence = said.detail ?? `The service failed (status ${answer.status}).`;
  throw new Refused(answer.status === 401 ? "That is not the key." : sentence);
}

// Does what may be refused, and says so where it is.
async function attempt(work) {
  tell(error, "");
  try {
    await work();
  } catch (refusal) {
    if (!(refusal instanceof Refused)) throw refusal;
    tell(error, refusal.message, sessionStorage.getItem(STORED_KEY) ? () => attempt(work) : null);
    showDoor();
  }
}

function showDoor() {
  const isOpen = Boolean(sessionStorage.getItem(STORED_KEY));
  keyForm.hidden = isOpen;
  byId("leave").hidden = !isOpen;
  moderation.hidden = !isOpen || !lists.length;
}

function reasonName(reason) {
  const words = reason.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function listLink(list, reason, name, count) {
  const now = asked();
  const isCurrent = list === now.list && reason === now.reason;
  const href = `/moderate?${queryString({ list, reason })}`;
  return h("li", {}, h("a", { href, class: "choice", "aria-current": isCurrent ? "page" : null },
    h("span", {}, name), h("span", { class: "count" }, formatCount(count))));
}

function showLists() {
  const byReason = ({ list, reasons }) =>
    Object.entries(reasons).map(([reason, count]) => listLink(list, reason, reasonName(reason), count));
  byId("lists").replaceChildren(h("ul", {}, lists.map((one) => [
    listLink(one.list, "", TITLES[one.list] ?? one.list, one.total),
    h("li", {}, h("ul", { class: "below" }, byReason(one))),
  ]).flat()));
}

function listingCard({ listing, hidden }) {
  return h("div", { class: "case" },
    h("div", { class: "case-photo" }, photo(hidden ? null : listing.image_id, "", { sizes: "7rem", isLazy: true })),
    h("div", {},
      h("h3", {}, link({ listing: listing.product_id }, {}, listing.name)),
      price(listing),
      h("p", { class: "hint" }, [listing.category, place(listing)].filter(Boolean).join(" · ")),
      hidden ? h("p", { class: "note" }, "Taken down") : null));
}

function opinions({ by_words: words, probability_by_words: sureWords, by_photo: seen, probability_by_photo: sureSeen }) {
  return h("dl", {},
    h("div", {}, h("dt", {}, "Its words say"), h("dd", {}, `${words} (${formatPercent(sureWords)})`)),
    h("div", {}, h("dt", {}, "Its photo says"), h("dd", {}, `${seen} (${formatPercent(sureSeen)})`)));
}

function rejected({ reason, details }) {
  const facts = Object.entries(details).filter(([, value]) => value !== "");
  const fact = ([name, value]) => h("div", {}, h("dt", {}, reasonName(name)), h("dd", { class: "raw" }, String(value)));
  return h("li", { class: "panel" }, h("h3", {}, reasonName(reason)), h("dl", {}, facts.map(fact)));
}

// Listings of one group side by side; all others one by one.
function cases(list, results) {
  if (list !== "duplicates") {
    return results.map((entry) => (entry.listing
      ? h("li", { class: "panel" }, listingCard(entry), "by_words" in entry.details ? opinions(entry.details) : null)
      : rejected(entry)));
  }
  const groups = Map.groupBy(results, ({ details }) => details.group);
  return [...groups.values()].map((group) => h("li", { class: "panel" },
    h("h3", {}, `${formatCount(group[0].details.listings)} listings of one offer`),
    h("div", { class: "side-by-side" }, group.map(listingCard))));
}

async function showList({ list, reason }, before = []) {
  setBusy(entries, true);
  const path = `/moderate/${encodeURIComponent(list)}?${queryString({ reason, k: PAGE_SIZE, offset: before.length })}`;
  const { total, results } = await (await ask(path)).json();
  const all = [...before, ...results];
  const isAll = !results.length || all.length >= total;
  const title = byId("list-title");
  title.textContent = TITLES[list] ?? list;
  const ofReason = reason ? `: ${reasonName(reason).toLowerCase()}` : "";
  status.textContent = `${formatCount(total)} ${total === 1 ? "entry" : "entries"}${ofReason}`;
  byId("export").hidden = !total;
  const onclick = () => attempt(() => showList({ list, reason }, all));
  const more = h("button", { type: "button", class: "more", onclick }, "Show more");
  const nothing = h("p", { class: "empty" }, "Nothing to look at here.");
  const shown = all.length ? h("ul", { class: "cases" }, cases(list, all)) : nothing;
  entries.replaceChildren(shown, ...(isAll ? [] : [more]));
  setBusy(entries, false);
  document.title = `${title.textContent} – ${TITLE}`;
}

async function show() {
  if (!sessionStorage.getItem(STORED_KEY)) return showDoor();
  lists = (await (await ask("/moderate/counts")).json()).lists;
  showDoor();
  showLists();
  await showList(asked());
}

// The whole list, as a file. A link alone would not carry the key.
async function exportList() {
  const { list, reason } = asked();
  const answer = await ask(`/moderate/${encodeURIComponent(list)}?${queryString({ reason, format: "csv" })}`);
  const url = URL.createObjectURL(await answer.blob());
  h("a", { href: url, download: `${[list, reason].filter(Boolean).join("-")}.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 0);
}

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORED_KEY, keyForm.elements.key.value);
  keyForm.reset();
  attempt(show);
});
byId("leave").addEventListener("click", () => {
  sessionStorage.removeItem(STORED_KEY);
  lists = [];
  showDoor();
});
byId("export").addEventListener("click", () => attempt(exportList));
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[href^='/moderate']");
  if (!anchor || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", anchor.href);
  showLists();
  attempt(() => showList(asked())).then(() => byId("list-title").focus());
});
addEventListener("popstate", () => attempt(show));
attempt(show);
