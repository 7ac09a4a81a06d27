// A photo with a frame on it: what the frame holds is what is looked for. It is moved and sized by finger, mouse or keys.

import { h, placed } from "./elements.js";
import { cropText } from "./photo-question.js";

const LONGEST = 640; // pixels that it is drawn with
const LEAST = 0.12; // share of a side that a frame has at least
const STEP = 0.04; // share of a side that a key moves
const CORNERS = ["nw", "ne", "sw", "se"];
const WHOLE = { left: 0, top: 0, width: 1, height: 1 };

const within = (value, least, most) => Math.min(Math.max(value, least), most);

function moved({ left, top, width, height }, dx, dy) {
  return { left: within(left + dx, 0, 1 - width), top: within(top + dy, 0, 1 - height), width, height };
}

function sized({ left, top, width, height }, corner, dx, dy) {
  const [right, bottom] = [left + width, top + height];
  const newLeft = corner.includes("w") ? within(left + dx, 0, right - LEAST) : left;
  const newTop = corner.includes("n") ? within(top + dy, 0, bottom - LEAST) : top;
  const newRight = corner.includes("e") ? within(right + dx, left + LEAST, 1) : right;
  const newBottom = corner.includes("s") ? within(bottom + dy, top + LEAST, 1) : bottom;
  return { left: newLeft, top: newTop, width: newRight - newLeft, height: newBottom - newTop };
}

// `changed` is called with the text of the new frame, "" for the whole photo, once it is let go.
export function cropper(bitmap, crop, changed) {
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)),
    role: "img", "aria-label": "The photo that is looked for",
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const handles = CORNERS.map((corner) => h("span", { class: `handle ${corner}`, "data-corner": corner }));
  const label = "Part of the photo that is looked for: arrow keys move it, with Shift they size it";
  const frame = h("div", { class: "frame", tabindex: 0, role: "group", "aria-label": label }, handles);
  const box = h("div", { class: "cropper" }, canvas, frame);
  let now = crop ?? WHOLE;
  let grip = null; // { corner, x, y, from } while it is dragged

  function set(next) {
    now = next;
    placed(frame, now);
  }

  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    grip = { corner: event.target.dataset.corner, x: event.clientX, y: event.clientY, from: now };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const [dx, dy] = [(event.clientX - grip.x) / box.clientWidth, (event.clientY - grip.y) / box.clientHeight];
    set(grip.corner ? sized(grip.from, grip.corner, dx, dy) : moved(grip.from, dx, dy));
  });
  const letGo = () => {
    if (!grip) return;
    const isChanged = cropText(grip.from) !== cropText(now);
    grip = null;
    if (isChanged) changed(cropText(now));
  };
  frame.addEventListener("pointerup", letGo);
  frame.addEventListener("pointercancel", letGo);
  frame.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
    if (!way) return;
    event.preventDefault();
    set(event.shiftKey ? sized(now, "se", ...way) : moved(now, ...way));
    changed(cropText(now));
  });
  set(now);
  return box;
}
