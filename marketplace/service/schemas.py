"""What the API answers: the models behind its OpenAPI description."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["photo", "text", "words", "category", "price", "place"]  # of evidence

ProductId = Annotated[str, Field(description="The listing's id.", examples=["ec7fe18a-ef4f-4bfc-89f1-c03a6a0b669c"])]
ImageId = Annotated[str, Field(description="The photo's id.", examples=["b9f7d50f-e966-480c-9290-50375f4fcc24"])]
PhotoUrl = Annotated[str, Field(description="Where this service answers with it.", examples=["/images/b9f7d50f-e966.jpg"])]
Name = Annotated[str, Field(description="The listing's title.", examples=["Grey classical guitar"])]
Category = Annotated[
    str,
    Field(
        description="Path of the category, its levels separated by ' / '.",
        examples=["Musical Instruments & DJ Equipment / Guitars & Accessories / Acoustic Guitars"],
    ),
]
Price = Annotated[float | None, Field(description="Pounds; null when not known.", examples=[52.0])]
Plausible = Annotated[bool, Field(description="False for 0 and for joke prices.")]
Town = Annotated[str, Field(description="Empty when not known.", examples=["Kendal"])]
County = Annotated[str, Field(description="Empty when not known.", examples=["Cumbria"])]
Generation = Annotated[str, Field(description="The published index that answers.", examples=["d6484a15de5d"])]


class ErrorMessage(BaseModel):
    """Any error."""

    detail: str = Field(
        description="One sentence that says what is wrong.", examples=["k: Input should be less than or equal to 100"]
    )


class Recommendation(BaseModel):
    """One listing, ranked and explained."""

    product_id: ProductId
    name: Name
    category: Category
    price: Price
    price_plausible: Plausible
    town: Town
    county: County
    image_id: ImageId | None = Field(description="Its photo nearest to the query's, or its first one; null when it has none.")
    photo_url: PhotoUrl | None = Field(description="Where that photo is; null when it has none.")
    score: float = Field(description="From 0 to 1; the sum of the parts.", examples=[0.77])
    parts: dict[Kind, float] = Field(
        description="What each kind of evidence contributed; only the kinds that the query has.",
        examples=[{"photo": 0.5, "text": 0.11, "words": 0.16}],
    )
    duplicates: int = Field(description="Near-duplicate listings that this one stands for, itself not counted.", examples=[0])


class Recommendations(BaseModel):
    """Listings, best first."""

    results: list[Recommendation] = Field(description="At most k listings, best first; fewer at the end.")


class SimilarImages(Recommendations):
    """Listings like a photo, best first."""

    similar_index: list[str] = Field(description="The photo ids of the results, best first.")


class FeatureEmbedding(BaseModel):
    """The vector of a photo."""

    features: list[float] = Field(description="The photo's vector, of unit length.", examples=[[0.0312, 0.0, 0.0127]])
    dimension: int = Field(description="Numbers in it.", examples=[2048])
    model: str = Field(description="The network that made it.", examples=["resnet50"])


class CategoryProbability(BaseModel):
    """One category and how likely it is."""

    category: str = Field(description="Main category.", examples=["Sports, Leisure & Travel"])
    probability: float = Field(description="From 0 to 1; those of all categories add up to 1.", examples=[0.35])


class PriceRange(BaseModel):
    """What listings like it ask."""

    low: float = Field(description="One listing in ten is cheaper.", examples=[13.28])
    median: float = Field(description="Half of the listings are cheaper.", examples=[32.32])
    high: float = Field(description="One listing in ten is dearer.", examples=[84.79])
    currency: str = Field(description="ISO 4217 code.", examples=["GBP"])


class ListingPrediction(BaseModel):
    """What a new listing is, and what it could ask."""

    categories: list[CategoryProbability] = Field(description="All main categories, the most likely first.")
    price: PriceRange = Field(description="The price range.")


class Photo(BaseModel):
    """One photo of a listing."""

    image_id: ImageId
    photo_url: PhotoUrl


class Product(BaseModel):
    """One listing."""

    product_id: ProductId
    name: Name
    description: str = Field(description="What its seller says, without phone numbers, e-mail addresses and postcodes.")
    category: Category
    price: Price
    price_plausible: Plausible
    town: Town
    county: County
    posted_on: str = Field(description="ISO date, or empty.", examples=["2022-02-26"])
    photos: list[Photo] = Field(description="Its photos.")


class PriceBounds(BaseModel):
    """The prices there are, in pounds."""

    min: float = Field(description="The lowest price.", examples=[0.0])
    max: float = Field(description="The highest price.", examples=[1850.0])


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


class Reloaded(BaseModel):
    """What is served after a reload."""

    generation: Generation
    switched: bool = Field(description="Whether it is another than before.")
