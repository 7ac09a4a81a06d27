// Photos that a person searches with: kept in this browser only, so that an address that names one survives a reload.

const DATABASE = "searched-photos";
const STORE = "photos";
const KEPT = 20; // the newest; others are forgotten

const inMemory = new Map(); // key -> File; enough for this visit where the browser keeps nothing

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "key" });
  return finished(request);
}

async function store(mode) {
  return (await open()).transaction(STORE, mode).objectStore(STORE);
}

async function write(key, file) {
  const photos = await store("readwrite");
  await finished(photos.put({ key, file }));
  const keys = await finished(photos.getAllKeys()); // ascending: keys begin with their time
  for (const old of keys.slice(0, -KEPT)) photos.delete(old);
}

// Its key. A browser that keeps nothing, as in private windows, still has it until the page is left.
export function keepPhoto(file) {
  const key = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 6)}`;
  inMemory.set(key, file);
  write(key, file).catch(() => {});
  return key;
}

// Null when this browser does not have it.
export async function keptPhoto(key) {
  if (inMemory.has(key)) return inMemory.get(key);
  try {
    const found = await finished((await store("readonly")).get(key));
    if (found) inMemory.set(key, found.file);
    return found?.file ?? null;
  } catch {
    return null;
  }
}
