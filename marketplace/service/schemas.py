"""What the API answers: the models behind its OpenAPI description."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from marketplace.retrieval import moderation, words

Kind = Literal["photo", "text", "words", "category", "price", "place"]  # of evidence

ProductId = Annotated[str, Field(description="The listing's id.", examples=["ec7fe18a-ef4f-4bfc-89f1-c03a6a0b669c"])]
ImageId = Annotated[str, Field(description="The photo's id.", examples=["b9f7d50f-e966-480c-9290-50375f4fcc24"])]
PhotoUrl = Annotated[
    str, Field(description="Where this service answers with its cleaned square.", examples=["/images/b9f7d50f-e966.jpg"])
]
DisplayUrl = Annotated[
    str, Field(description="Where this service answers with the whole photo.", examples=["/images/b9f7d50f-e966/display"])
]
Width = Annotated[int, Field(description="Pixels of what is at `display_url`.", examples=[800])]
Height = Annotated[int, Field(description="Pixels of what is at `display_url`.", examples=[600])]
Name = Annotated[str, Field(description="The listing's title.", examples=["Grey classical guitar"])]
Category = Annotated[
    str,
    Field(
        description="Path of the category, its levels separated by ' / '.",
        examples=["Musical Instruments & DJ Equipment / Guitars & Accessories / Acoustic Guitars"],
    ),
]
Price = Annotated[float | None, Field(description="In `currency`; null when not known.", examples=[52.0])]
Currency = Annotated[str, Field(description="ISO 4217 code.", examples=["GBP"])]
Plausible = Annotated[bool, Field(description="False for 0 and for joke prices.")]
Town = Annotated[str, Field(description="Empty when not known.", examples=["Kendal"])]
PostedOn = Annotated[str, Field(description="ISO date, or empty.", examples=["2022-02-26"])]
County = Annotated[str, Field(description="Empty when not known.", examples=["Cumbria"])]
Mark = Annotated[tuple[int, int], Field(description="The first character, and the one after the last.")]
Sort = Literal["relevance", *get_args(words.Sort)]
Generation = Annotated[str, Field(description="The published index that answers.", examples=["d6484a15de5d"])]


class ErrorMessage(BaseModel):
    """Any error."""

    detail: str = Field(description="One sentence that says what is wrong.", examples=["k: give 100 or less"])


class Snippet(BaseModel):
    """A part of a listing's description, and which characters of it are words that were looked for."""

    text: str = Field(description="Entities and invisible characters resolved.", examples=["A good guitar with a case"])
    marks: list[Mark] = Field(description="Ascending; empty where it holds none of the words.", examples=[[[7, 13]]])


class Card(BaseModel):
    """One listing in short, with one of its photos."""

    product_id: ProductId
    name: Name
    category: Category
    price: Price
    price_plausible: Plausible
    currency: Currency
    town: Town
    county: County
    posted_on: PostedOn
    image_id: ImageId | None = Field(description="Its photo nearest to the query's, or its first one; null when it has none.")
    photo_url: PhotoUrl | None = Field(description="Where that photo is; null when it has none.")
    display_url: DisplayUrl | None = Field(description="Where it is to be looked at; null when it has none.")
    photo_width: Width | None = Field(description="Pixels of what is at `display_url`; null when it has none.")
    photo_height: Height | None = Field(description="Pixels of what is at `display_url`; null when it has none.")


class Recommendation(Card):
    """One listing, ranked and explained where it was looked for by words, a photo or another listing."""

    name_marks: list[Mark] = Field(
        description="Which characters of the name are words that were looked for, ascending.", examples=[[[15, 21]]]
    )
    snippet: Snippet | None = Field(description="The part of the description with most of the words; null without words.")
    score: float | None = Field(
        description="The probability that it is right, from 0 to 1; the sum of the parts. Null where listings are not ranked.",
        examples=[0.77],
    )
    close: bool | None = Field(
        description="Whether it is more likely right than not: its score reaches 0.5. Null where listings are not ranked.",
        examples=[True],
    )
    parts: dict[Kind, float] = Field(
        description="What each kind of evidence contributed; only the kinds that the query has.",
        examples=[{"photo": 0.5, "text": 0.11, "words": 0.16}],
    )
    reasons: list[str] = Field(
        description="Why it was found, as a shopper would say it; empty where listings are not ranked.",
        examples=[["has “guitar”", "same kind: Guitars"]],
    )
    duplicates: int = Field(
        description="Listings of the same offer that this one stands for, itself not counted; 0 where listings are not ranked.",
        examples=[1],
    )
    duplicate_ids: list[ProductId] = Field(
        description="Which these are, at most 100; GET /products/{product_id} gives each of them.",
        examples=[["3f6d2a3c-6a0f-4b6c-9a43-0a5b8f6d9f10"]],
    )


NextOffset = Annotated[
    int | None, Field(description="`offset` of the next page; null where there is none, or it is above 1,000.", examples=[10])
]


class Recommendations(BaseModel):
    """A page of listings, best first."""

    results: list[Recommendation] = Field(description="At most k listings, best first; fewer at the end.")
    next_offset: NextOffset


class PriceCount(BaseModel):
    """A price range and its listings; both ends are in it."""

    min: float = Field(description="In `currency`.", examples=[10.0])
    max: float | None = Field(description="Null for the last range, which has no upper end.", examples=[24.99])
    currency: Currency
    listings: int = Field(description="Their number.", examples=[12])


class Counts(BaseModel):
    """How many listings of the whole result each filter would leave."""

    categories: dict[str, int] = Field(description="By path of the category, at every level.")
    towns: dict[str, int] = Field(description="By town.")
    counties: dict[str, int] = Field(description="By county.")
    prices: list[PriceCount] = Field(description="By price range, ascending; listings without a price are in none.")


class SearchResults(BaseModel):
    """A page of listings, and what the whole result holds that it is a part of."""

    results: list[Recommendation] = Field(description="At most k listings; fewer at the end.")
    next_offset: NextOffset
    total: int = Field(description="Listings of the whole result, those folded into others too.", examples=[184])
    total_is_at_least: bool = Field(description="Whether there are more: they are counted up to 1,000.", examples=[False])
    counts: Counts | None = Field(description="Null unless asked for with counts=true.")
    nearest: list[Recommendation] = Field(description="Where nothing is close, at most three listings that come nearest.")
    corrections: dict[str, str] = Field(description="Misspelt words, and what was read instead.", examples=[{"soffa": "sofa"}])


class SimilarImages(Recommendations):
    """A page of listings like photos, best first."""

    similar_index: list[str] = Field(description="The photo ids of the results, best first.")


class FeatureEmbedding(BaseModel):
    """The vector of a photo, or of several."""

    features: list[float] = Field(
        description="The photo's vector, of unit length; of several photos the mean, of unit length again.",
        examples=[[0.0312, 0.0, 0.0127]],
    )
    dimension: int = Field(description="Numbers in it.", examples=[2048])
    model: str = Field(description="The network that made it.", examples=["resnet50"])


class CategoryProbability(BaseModel):
    """One category and how likely it is."""

    category: str = Field(description="Main category.", examples=["Sports, Leisure & Travel"])
    probability: float = Field(description="From 0 to 1; those of all categories add up to 1.", examples=[0.35])


class PathProbability(BaseModel):
    """One whole path of categories and how likely it is."""

    category: Category
    probability: float = Field(description="From 0 to 1.", examples=[0.21])


class PriceRange(BaseModel):
    """What listings like it ask."""

    low: float = Field(description="One listing in ten is cheaper.", examples=[13.28])
    median: float = Field(description="Half of the listings are cheaper.", examples=[32.32])
    high: float = Field(description="One listing in ten is dearer.", examples=[84.79])
    is_informative: bool = Field(
        description="Whether it says more than that prices differ: it is at most 0.8 as wide, as a factor, as that of all prices."
    )
    currency: Currency


class ListingPrediction(BaseModel):
    """What a new listing is, and what it could ask."""

    categories: list[CategoryProbability] = Field(description="All main categories, the most likely first.")
    category: Category | None = Field(description="The deepest path that is more likely right than not; null where none is.")
    paths: list[PathProbability] = Field(description="At most five whole paths, the most likely first.")
    price: PriceRange = Field(description="The price range.")
    comparables: list[Recommendation] = Field(
        description="At most eight listings most like it whose price can be meant, the most alike first."
    )


class Photo(BaseModel):
    """One photo of a listing."""

    image_id: ImageId
    photo_url: PhotoUrl
    display_url: DisplayUrl
    width: Width
    height: Height


class Level(BaseModel):
    """One level of a listing's category."""

    name: str = Field(description="Its own name.", examples=["Acoustic Guitars"])
    category: Category


class Product(BaseModel):
    """One listing."""

    product_id: ProductId
    name: Name
    description: str = Field(description="What its seller says, without phone numbers, e-mail addresses and postcodes.")
    category: Category
    price: Price
    price_plausible: Plausible
    currency: Currency
    town: Town
    county: County
    posted_on: PostedOn
    photos: list[Photo] = Field(description="Its photos.")
    breadcrumb: list[Level] = Field(description="Its category level by level, the widest first.")
    price_range: PriceRange = Field(description="What it could ask, told by models that have not seen its price.")
    price_verdict: Literal["low", "likely", "high"] | None = Field(
        description="Where its price is in that range; null where there is none, or the range is not informative."
    )
    duplicates: int = Field(description="Other listings of the same offer.", examples=[3])
    duplicate_listings: list[Card] = Field(description="Which these are, at most twelve.")
    same_seller: int = Field(description="Other listings of the same seller; 0 where sellers are not known.", examples=[0])
    same_seller_listings: list[Card] = Field(description="Which these are, at most twelve, the newest first.")


class PriceBounds(BaseModel):
    """The prices there are."""

    min: float = Field(description="The lowest price.", examples=[0.0])
    max: float = Field(description="The highest price.", examples=[1850.0])
    currency: Currency


class Choices(BaseModel):
    """What the filters can be set to."""

    categories: dict[str, int] = Field(description="Path of each category and the number of its listings.")
    towns: dict[str, int] = Field(description="Each town and the number of its listings.")
    counties: dict[str, int] = Field(description="Each county and the number of its listings.")
    price: PriceBounds | None = Field(description="The lowest and highest price; null when there is no listing.")


class Health(BaseModel):
    """That the service answers, and what it serves."""

    # "model" would be a name of pydantic's own.
    model_config = ConfigDict(protected_namespaces=())

    message: str = Field(description="Always the same words.", examples=["API is up and running!"])
    model: str = Field(description="The photo network.", examples=["resnet50"])
    rows: int = Field(description="Photos in the index.", examples=[737])
    listings: int = Field(description="Listings in the index.", examples=[390])
    dimension: int = Field(description="Numbers in a photo's vector.", examples=[2048])
    generation: Generation


class Ready(BaseModel):
    """That the models are loaded and warm."""

    generation: Generation


class Hidden(BaseModel):
    """What is hidden after a change."""

    hidden: int = Field(description="Ids that are hidden now, all together.", examples=[2])


class ModerationCount(BaseModel):
    """How long one list for moderators is."""

    list: moderation.List = Field(description="Its name.", examples=["implausible-prices"])
    total: int = Field(description="Its entries.", examples=[88])
    reasons: dict[str, int] = Field(description="Its entries by reason.", examples=[{"zero": 60, "unlikely": 28}])


class ModerationCounts(BaseModel):
    """How long the lists for moderators are."""

    lists: list[ModerationCount] = Field(description="All of them.")


class ModerationEntry(BaseModel):
    """One thing for a moderator to look at."""

    reason: str = Field(description="Why it is in the list.", examples=["zero"])
    listing: Card | None = Field(description="The listing that it is about; null for what was rejected.")
    hidden: bool = Field(description="Whether that listing is taken down; its photos then answer 404.")
    details: dict[str, str | int | float] = Field(description="What else the list tells.", examples=[{"group": 0, "listings": 2}])


class ModerationPage(BaseModel):
    """A part of a list for moderators."""

    list: moderation.List = Field(description="Its name.", examples=["implausible-prices"])
    total: int = Field(description="Entries of the whole list, or of the reason asked for.", examples=[88])
    reasons: dict[str, int] = Field(description="Entries of the whole list by reason.", examples=[{"zero": 60, "unlikely": 28}])
    results: Sequence[ModerationEntry] = Field(description="At most k entries.")


class Reloaded(BaseModel):
    """What is served after a reload."""

    generation: Generation
    switched: bool = Field(description="Whether it is another than before.")
