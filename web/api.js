// Calls to the service: what is asked for, what is given up, what is kept, and how a failure is told.

const MAX_ASKED = 96; // listings in one request; below the service's limit of 100
const SIMILAR = 12;
const ANSWERS_KEPT = 30; // for going back without asking again
const UNREACHABLE = "The service cannot be reached: check the connection, then try again.";
const SLOTS_OF_A_VIEW = ["results", "listing", "similar", "prediction"];

const answers = new Map(); // what was asked -> the answer
const searches = new Map(); // a search -> { listings: those found so far, complete: whether there are no more, answer: the first }
const running = new Map(); // slot -> AbortController of its request

class ApiError extends Error {}

export function queryString(values) {
  return new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();
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
    throw new ApiError(`The service failed (status ${response.status}): try again.`);
  }
  if (!response.ok) throw new ApiError(typeof answer.detail === "string" ? answer.detail : "The service refused the request.");
  return answer;
}

function keep(map, key, value) {
  map.set(key, value);
  if (map.size > ANSWERS_KEPT) map.delete(map.keys().next().value);
}

// Asks for one slot of the page and gives up an older request of the same slot. An answer that is kept is handed to
// `done` at once, before this returns, so that going back can restore focus and scroll.
async function ask(slot, { path, body, key = path }, { done, failed }) {
  running.get(slot)?.abort();
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

// The photo's key stands for the photo in the names of answers that are kept.
export function askForEstimate({ words, photo, photoKey }, handlers) {
  const body = formData({ image: photo, text: words });
  ask("prediction", { path: "/predict/listing", body, key: `sell ${photoKey} ${words}` }, handlers);
}

// The k best listings of a search, of which `key` is the name. Only what is not there yet is asked for: the order of
// the listings does not change from page to page. `waiting` is called when something has to be asked for.
export function askForListings({ key, words, photo, filters, k }, { waiting, done, failed }) {
  const isEnough = ({ listings, complete }) => complete || listings.length >= k;

  function askFrom(listings) {
    const wanted = Math.min(k - listings.length, MAX_ASKED);
    const values = { ...filters, k: wanted, offset: listings.length };
    const question = photo
      ? { path: "/predict/similar_images", body: formData({ image: photo, text: words, ...values }) }
      : { path: `/search?${queryString({ q: words, ...values })}` };
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
  waiting();
  askFrom(found.listings);
}
