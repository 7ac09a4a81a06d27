// The photo of a question: one that a person gave, or one of the catalogue, or a part of either that is marked on it.

import { UNREACHABLE } from "./api.js";
import { displayUrl } from "./elements.js";
import { keptPhoto } from "./photo-store.js";

const QUALITY = 0.92; // of the JPEG that a part is sent as

const questions = new Map(); // photo, like and crop of an address -> the promise of its photo

// Its message is one for the shopper.
export class NoPhoto extends Error {
  isForPeople = true;
}

// Left, top, width and height as shares of the photo's sides, or null for all of it.
export function cropOf(state) {
  const numbers = state.crop.split(",").map(Number);
  const [left, top, width, height] = numbers;
  const isCrop = numbers.length === 4 && numbers.every((share) => share >= 0 && share <= 1);
  return isCrop && width > 0 && height > 0 && left + width < 1.001 && top + height < 1.001 ? { left, top, width, height } : null;
}

export function cropText({ left, top, width, height }) {
  const isWhole = width > 0.98 && height > 0.98;
  return isWhole ? "" : [left, top, width, height].map((share) => share.toFixed(3)).join(",");
}

async function wholePhoto({ photo, like }) {
  if (photo) {
    const file = await keptPhoto(photo);
    if (!file) throw new NoPhoto("This search had a photo, which only the browser that it was chosen in keeps: choose it again.");
    return file;
  }
  let answer;
  try {
    answer = await fetch(displayUrl(like));
  } catch {
    throw new NoPhoto(UNREACHABLE);
  }
  if (!answer.ok) throw new NoPhoto("The photo of this search is no longer there: choose another.");
  return answer.blob();
}

async function part(blob, { left, top, width, height }) {
  const bitmap = await createImageBitmap(blob);
  const [w, h] = [bitmap.width, bitmap.height];
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * w));
  canvas.height = Math.max(1, Math.round(height * h));
  canvas.getContext("2d").drawImage(bitmap, -Math.round(left * w), -Math.round(top * h));
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}

// The whole photo of a question, to be shown. Rejects with NoPhoto.
export function photoToShow({ photo, like }) {
  const key = `${photo} ${like}`;
  if (!questions.has(key)) {
    const promise = wholePhoto({ photo, like });
    promise.catch(() => questions.delete(key)); // asked for again the next time
    questions.set(key, promise);
  }
  return questions.get(key);
}

// What is sent to the service. Rejects with NoPhoto.
export async function photoToAsk(state) {
  const whole = await photoToShow(state);
  const crop = cropOf(state);
  return crop ? part(whole, crop) : whole;
}
