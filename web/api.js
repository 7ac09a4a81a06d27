// Calls to the service: what is asked for, what is given up, what is kept, and how a failure is told.

import { queryString } from "./query-string.js";

const MAX_ASKED = 96; // listings in one request; below the service's limit of 100
const SIMILAR = 12;
const COMPARABLE = 12;
const ANSWERS_KEPT = 60; // for going back without asking again
const BARELY_LIKE = "0.05"; // score below which a listing has nothing to do with a photo
const SLOTS_OF_A_VIEW = ["results", "listing", "similar", "prediction", "comparable"];
export const UNREACHABLE = "The shop cannot be reached: check your connection, then try again.";

// Sentences of the service that a shopper would not understand -> what is said instead.
const REWORDED = [
  [/^not a usable image \((empty|not_an_image)\)/, "That file is not a photo: choose a JPEG, PNG, WebP or HEIC picture."],
  [/^not a usable image \((truncated|unreadable)\)/, "That photo is damaged: choose another, or take a new one."],
  [/^not a usable image \(too_many_pixels\)/, "That photo is too large: choose a smaller one."],
  [/^not a usable image/, "That photo cannot be used: choose another."],
  [/^the request is larger/, "That photo is too large: choose a smaller one."],
  [/^(too many photos|too much is being sent)/, "Many people are searching by photo right now: try again in a moment."],
  [/^no listing has the category .*/, "There is no such category any more: choose another."],
  [/^no listing has the place "(.*)": try (.*)$/, "Nothing is for sale in “$1”: try $2."],
  [/^no listing has the place "(.*)".*/, "Nothing is for sale in “$1”: try a town or county nearby."],
  [/^q: .*/, "Type at least one word, or show a photo."],
  [/^no listing has the id/, "This listing is no longer here: it may have been sold or taken down."],
];

const answers = new Map(); // what was asked -> the answer
const searches = new Map(); // a search -> { listings: found so far, complete: whether there are no more, answer: the first }
const running = new Map(); // slot -> AbortController of its request

class ApiError extends Error {}

function inShoppersWords(detail) {
  const [pattern, sentence] = REWORDED.find(([each]) => each.test(detail)) ?? [];
  if (pattern) return pattern.exec(detail)[0].replace(pattern, sentence);
  return `${detail.charAt(0).toUpperCase()}${detail.slice(1).replace(/[.]?$/, ".")}`;
}

function formData(values) {
  const form = new FormData();
  for (const [name, value] of Object.entries(values)) if (value) form.append(name, value);
  return form;
}

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
    throw new ApiError(`Something went wrong on our side (status ${response.status}): try again.`);
  }
  if (!response.ok) {
    throw new ApiError(typeof answer.detail === "string" ? inShoppersWords(answer.detail) : "This cannot be searched for.");
  }
  return answer;
}

function keep(map, key, value) {
  map.set(key, value);
  if (map.size > ANSWERS_KEPT) map.delete(map.keys().next().value);
}

// Asks for one slot of the page and gives up an older request of the same slot. An answer that is kept is handed to
// `done` at once, before this returns, so that going back can restore focus and scroll.
// `body`: a function that gives, or promises, the form to send.
async function ask(slot, { path, body, key = path }, { done, failed }) {
  running.get(slot)?.abort();
  if (answers.has(key)) return done(answers.get(key));
  const controller = new AbortController();
  running.set(slot, controller);
  let answer;
  try {
    const form = await body?.();
    if (controller.signal.aborted) return;
    answer = await call(path, form, controller.signal);
  } catch (error) {
    if (error.name === "AbortError" || controller.signal.aborted) return;
    if (error instanceof ApiError || error.isForPeople) return failed(error.message);
    throw error;
  }
  if (controller.signal.aborted) return;
  keep(answers, key, answer);
  done(answer);
}

// Every request of the view that is left. The choices of the filters are wanted whatever is shown.
export function giveUpRequests() {
  for (const slot of SLOTS_OF_A_VIEW) running.get(slot)?.abort();
}

export function askForChoices(handlers) {
  ask("choices", { path: "/filters" }, handlers);
}

export function askForListing(id, handlers) {
  ask("listing", { path: `/products/${encodeURIComponent(id)}` }, handlers);
}

export function askForSimilar(id, handlers) {
  ask("similar", { path: `/products/${encodeURIComponent(id)}/similar?k=${SIMILAR}` }, handlers);
}

export function askForNewest(k, handlers) {
  ask("newest", { path: `/search?${queryString({ k, sort: "newest" })}` }, handlers);
}

export function askForNewestOf(category, handlers) {
  ask(`newest of ${category}`, { path: `/search?${queryString({ k: 4, category, sort: "newest" })}` }, handlers);
}

export function askForComparable({ words, category }, handlers) {
  ask("comparable", { path: `/search?${queryString({ q: words, category, k: COMPARABLE })}` }, handlers);
}

// `photo`: null, or a function that promises the photo; its key stands for it in the names of answers that are kept.
export function askForEstimate({ words, photo, photoKey }, handlers) {
  const body = async () => formData({ image: await photo?.(), text: words });
  ask("prediction", { path: "/predict/listing", body, key: `sell ${photoKey} ${words}` }, handlers);
}

// The k best listings of a search, of which `key` is the name. Only what is not there yet is asked for: the order of
// the listings does not change from page to page. `waiting` is called when something has to be asked for.
export function askForListings({ key, words, photo, filters, sort, k }, { waiting, done, failed }) {
  const isEnough = ({ listings, complete }) => complete || listings.length >= k;

  function askFrom(listings) {
    const wanted = Math.min(k - listings.length, MAX_ASKED);
    const page = { k: wanted, offset: listings.length };
    const body = async () =>
      formData({ image: await photo(), text: words, ...filters, min_score: filters.min_score || BARELY_LIKE, ...page });
    const question = photo
      ? { path: "/predict/similar_images", body }
      : { path: `/search?${queryString({ q: words, ...filters, sort, counts: listings.length ? "" : "true", ...page })}` };
    const add = (answer) => {
      const { results } = answer;
      const found = {
        listings: [...listings, ...results],
        complete: results.length < wanted,
        answer: searches.get(key)?.answer ?? answer,
      };
      keep(searches, key, found);
      if (isEnough(found)) done(found);
      else askFrom(found.listings);
    };
    ask("results", { ...question, key: `${key} ${wanted} ${listings.length}` }, { done: add, failed });
  }

  const found = searches.get(key) ?? { listings: [], complete: false };
  if (isEnough(found)) return done(found);
  waiting(found);
  askFrom(found.listings);
}
