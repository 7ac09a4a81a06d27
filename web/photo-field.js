// Photos that come in: taken, or chosen, in a field that can show them small, or dropped or pasted anywhere on the page.

const PREVIEW_SIDE = 480; // pixels

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
  const [ways, picked, canvas, remove] = [".ways", ".picked", "canvas", "button"].map((selector) => root.querySelector(selector));
  const inputs = [...root.querySelectorAll("input")];
  let current = null;

  function set(file) {
    if (file === current) return;
    current = file;
    canvas.hidden = true;
    ways.hidden = Boolean(file);
    picked.hidden = !file;
    for (const input of inputs) input.value = "";
    if (file) drawPreview(canvas, file, () => current === file);
  }

  for (const input of inputs) {
    input.addEventListener("change", () => {
      if (!input.files.length) return; // the dialog was cancelled
      const [file] = input.files;
      changed(file);
      input.value = ""; // so that the same photo can be chosen again
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return; // which would send the form
      event.preventDefault();
      input.click();
    });
  }
  remove.addEventListener("click", () => {
    changed(null);
    inputs.at(-1).focus();
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
