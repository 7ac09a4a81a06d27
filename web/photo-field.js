// Photos that come in: chosen in a field, which shows them small, or dropped or pasted anywhere on the page.

const PREVIEW_SIDE = 320; // pixels

async function drawPreview(canvas, file, isCurrent) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return; // a kind that this browser cannot draw: the service may be able to read it
  }
  if (!isCurrent()) return;
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
}

// Fills `root` from the page's template. `changed` is called with the file that a person chose, or with null when it is
// removed; nothing is shown until `set` is called with it.
export function photoField(root, changed) {
  root.append(document.getElementById("photo-field").content.cloneNode(true));
  const [choose, input, chosen, canvas, remove] = [".pick", "input", ".picked", "canvas", "button"].map((selector) =>
    root.querySelector(selector));
  root.querySelector(".pick-label").textContent = root.dataset.label;
  let current = null;

  function set(file) {
    if (file === current) return;
    current = file;
    canvas.hidden = true;
    const hadFocus = document.activeElement === input;
    choose.hidden = Boolean(file);
    chosen.hidden = !file;
    if (file && hadFocus) remove.focus();
    root.querySelector(".picked-name").textContent = file?.name ?? "";
    if (file) drawPreview(canvas, file, () => file === current);
  }

  input.addEventListener("change", () => {
    const file = input.files[0];
    input.value = ""; // so that choosing the same file again is a change
    if (file) changed(file);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return; // which would send the form
    event.preventDefault();
    input.click();
  });
  remove.addEventListener("click", () => {
    changed(null);
    input.focus();
  });
  return { set };
}

export function takeDroppedPhotos(take) {
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0; // dragenter and dragleave also fire for every child
  const setDepth = (value) => {
    depth = Math.max(0, value);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", (event) => carriesFiles(event) && setDepth(depth + 1));
  addEventListener("dragleave", (event) => carriesFiles(event) && setDepth(depth - 1));
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    setDepth(0);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

export function takePastedPhotos(take) {
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
