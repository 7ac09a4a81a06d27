// Ask the API with the generated TypeScript client, and check what it answers.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { client } from "./shop_client/client.gen.js";
import { type SearchResults } from "./shop_client/index.js";
import { checkHealth, embedPhoto, findSimilarImages, getPhoto, getProduct, predictListing, recommendProducts, search } from "./shop_client/index.js";

const question = JSON.parse(readFileSync("question.json", "utf8"));
client.setConfig({ baseUrl: question.url });

const photo = (name: "photo" | "other_photo") => new File([readFileSync(question[name])], "photo.jpg", { type: "image/jpeg" });

async function readAllPages(): Promise<string[]> {
  const found: string[] = [];
  for (let offset: number | null = 0; offset !== null; ) {
    const page: SearchResults = (await search({ query: { k: 25, offset }, throwOnError: true })).data;
    found.push(...page.results.map((result) => result.product_id));
    offset = page.next_offset;
  }
  return found;
}

assert.equal((await checkHealth({ throwOnError: true })).data.message, "API is up and running!");
const embedded = (await embedPhoto({ body: { image: [photo("photo")] }, throwOnError: true })).data;
assert.equal(embedded.features.length, embedded.dimension);

const similar = await findSimilarImages({ body: { image: [photo("photo")], k: 3, max_price: 1e6 }, throwOnError: true });
assert.equal(similar.data.results.length, 3);
assert.ok(question.same.includes(similar.data.results[0].product_id));
assert.ok(similar.response.headers.get("X-Generation"));
const both = await findSimilarImages({ body: { image: [photo("photo"), photo("other_photo")] }, throwOnError: true });
const byPhoto = both.data.results.map((result) => result.parts.photo ?? 0);
assert.ok(byPhoto.filter((part) => part > 0.9 * byPhoto[0]).length >= 2);

const { price } = (await predictListing({ body: { image: [photo("photo")], text: "hardly used" }, throwOnError: true })).data;
assert.ok(price.low <= price.median && price.median <= price.high);

const everything = await readAllPages();
assert.equal(everything.length, question.listings);
assert.equal(new Set(everything).size, question.listings);
assert.ok((await search({ query: { q: "guitar" }, throwOnError: true })).data.results[0].reasons.length);

const recommended = await recommendProducts({ body: { ids: [question.product_id], k: 5 }, throwOnError: true });
assert.equal(recommended.data.results.length, 5);
const one = await getProduct({ path: { product_id: question.product_id }, throwOnError: true });
assert.equal(one.data.product_id, question.product_id);
const shown = await getPhoto({ path: { image_id: one.data.photos[0].image_id }, parseAs: "blob", throwOnError: true });
assert.equal((shown.data as Blob).type, "image/jpeg");
const refused = await getProduct({ path: { product_id: "nobody" } });
assert.equal(refused.error?.detail, "no listing has the id nobody");
console.log("the generated TypeScript client: searched, uploaded, recommended");
