"""Ask the API with the generated Python client, and check what it answers."""

import json
import sys
from io import BytesIO
from pathlib import Path

sys.path.insert(0, ".")
from shop_client import Client
from shop_client.api.listings import get_photo, get_product, recommend_products
from shop_client.api.photos import embed_photo, find_similar_images, predict_listing
from shop_client.api.search import search
from shop_client.api.service import check_health
from shop_client.models import BodyEmbedPhoto, BodyFindSimilarImages, BodyPredictListing, BodyRecommendProducts, ErrorMessage
from shop_client.types import File

question = json.loads(Path("question.json").read_text())
client = Client(base_url=question["url"])


def photo(name: str) -> File:
    return File(payload=BytesIO(Path(question[name]).read_bytes()), file_name="photo.jpg", mime_type="image/jpeg")


def read_all_pages() -> list[str]:
    found, offset = [], 0
    while offset is not None:
        page = search.sync(client=client, k=25, offset=offset)
        found += [result.product_id for result in page.results]
        offset = page.next_offset
    return found


assert check_health.sync(client=client).message == "API is up and running!"
embedded = embed_photo.sync(client=client, body=BodyEmbedPhoto(image=[photo("photo")]))
assert len(embedded.features) == embedded.dimension

for body, query in ((BodyFindSimilarImages(image=[photo("photo")], k=3, max_price=1e6), {}), (photo("photo"), {"k": 3})):
    results = find_similar_images.sync(client=client, body=body, **query).results
    assert len(results) == 3 and results[0].product_id in question["same"] and isinstance(results[0].posted_on, str)
several = find_similar_images.sync(client=client, body=BodyFindSimilarImages(image=[photo("photo"), photo("other_photo")]))
assert sum(result.parts["photo"] > 0.9 * several.results[0].parts["photo"] for result in several.results) >= 2

prediction = predict_listing.sync(client=client, body=BodyPredictListing(image=[photo("photo")], text="hardly used"))
assert prediction.price.low <= prediction.price.median <= prediction.price.high

everything = read_all_pages()
assert len(everything) == len(set(everything)) == question["listings"]
assert search.sync(client=client, q="guitar").results[0].reasons

recommended = recommend_products.sync(client=client, body=BodyRecommendProducts(ids=[question["product_id"]], k=5))
assert len(recommended.results) == 5 and question["product_id"] not in {result.product_id for result in recommended.results}
assert get_product.sync(question["product_id"], client=client).product_id == question["product_id"]
shown = get_photo.sync(recommended.results[0].image_id, client=client)
assert shown.payload.read(2) == b"\xff\xd8"
refused = get_product.sync("nobody", client=client)
assert isinstance(refused, ErrorMessage) and refused.detail == "no listing has the id nobody"
print("the generated Python client: searched, uploaded, recommended")
