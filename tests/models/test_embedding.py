import numpy as np
import pytest
import torch

from marketplace.models import backbone as network
from marketplace.models import embedding, training


def test_whitened_features_have_mean_0_and_unit_covariance():
    generator = np.random.default_rng(0)
    features = (generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6)) + 3).astype(np.float32)
    with torch.no_grad():
        whitened = embedding.whitening(features, 4, power=False)(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(4), atol=1e-3)


def made_photos(listings: int, seed: int) -> training.Photos:
    """Two photos a listing: the category is loud in 4 features, the listing faint in 8, noise is loud in 20."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(listings) % 4, 2)
    owners = np.repeat(np.arange(listings), 2)

    def view() -> np.ndarray:
        own = np.repeat(np.random.default_rng(seed + 100).normal(size=(listings, 8)), 2, axis=0)
        return np.concatenate(
            [2 * np.eye(4)[labels] + 0.5, 0.2 * own + 1, generator.gamma(1.0, 1.0, size=(2 * listings, 20))], axis=1
        ).astype(np.float32)

    return training.Photos(view(), labels, owners, owners, np.arange(2 * listings), view())


@pytest.fixture(scope="module")
def embedders():
    photos = made_photos(300, seed=0)
    return {
        "plain": torch.nn.Identity(),
        "category": _category_only(),
        "trained": embedding.train_projection(photos, 32, 0.3, n_classes=4, seed=0),
    }


def _category_only() -> network.Projection:
    projection = network.Projection(32, 4, power=False)
    with torch.no_grad():
        projection.linear.weight.copy_(torch.eye(4, 32))
        projection.linear.bias.fill_(-0.5)
    return projection


def test_a_trained_projection_finds_listings_that_plain_features_do_not(embedders):
    new = made_photos(100, seed=1)
    figures = {name: embedding.retrieval_figures(module, new, np.arange(200)) for name, module in embedders.items()}
    assert figures["trained"]["same_listing_hit_at_10"] > 2 * figures["plain"]["same_listing_hit_at_10"]


def test_an_embedding_that_knows_the_category_only_does_not_win(embedders):
    new = made_photos(100, seed=1)
    chosen, figures = embedding.choose_embedder(embedders, new, np.arange(200))
    assert figures["category"]["category_p_at_10"] == 1.0 and figures["category"]["same_listing_hit_at_1"] < 0.1
    assert chosen == "trained"


def test_training_a_projection_twice_gives_the_same_one(embedders):
    again = embedding.train_projection(made_photos(300, seed=0), 32, 0.3, n_classes=4, seed=0)
    assert torch.equal(again.linear.weight, embedders["trained"].linear.weight)
