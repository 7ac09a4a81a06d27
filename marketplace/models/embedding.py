"""What is made of the backbone's features to compare photos by: whitened, or projected as training found best, and the choice."""

import math

import numpy as np
import torch
from pytorch_metric_learning import losses
from sklearn.decomposition import PCA
from torch import nn
from torch.optim import lr_scheduler

from marketplace import metrics
from marketplace.files.progress import progress
from marketplace.models import backbone, training

CATEGORY_WEIGHTS = (0.3, 3.0, 30.0, 100.0)  # beside a listing loss of 1, on cached features; the best on validation is taken
PROJECTION_STEPS, PROJECTION_RATE, PROJECTION_BATCH = 200, 1e-3, 512  # listings a step
FLAT_VARIANCE = 1e-6  # of the first principal component's: below it a direction is rounding, not whitened
FEATURE_DROPOUT = 0.3  # of the cached features: there is no other augmentation of them


def whitening(features: np.ndarray, size: int, power: bool) -> backbone.Projection:
    """PCA whitening of (N, D) features as a Projection, to at most `size` dimensions and the features' rank.

    Source: Jegou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and whitening",
    ECCV 2012, section 3.
    """
    rooted = backbone.signed_root(torch.from_numpy(features)).numpy() if power else features
    pca = PCA(min(size, *features.shape), whiten=True, random_state=0).fit(rooted)
    variances = pca.explained_variance_  # descending
    rank = max(1, np.count_nonzero(variances > FLAT_VARIANCE * variances[0]))
    scale = 1 / np.sqrt(np.maximum(variances[:rank], 1e-9))
    weight = pca.components_[:rank] * scale[:, None]
    projection = backbone.Projection(features.shape[1], len(weight), power)
    with torch.no_grad():
        projection.linear.weight.copy_(torch.from_numpy(weight))
        projection.linear.bias.copy_(torch.from_numpy(-weight @ pca.mean_))
    return projection


def train_projection(train: training.Photos, size: int, category_weight: float, n_classes: int, seed: int) -> backbone.Projection:
    """A projection trained so that photos of one listing attract, and photos of one category; it starts from the whitening.

    Losses: supervised contrastive over listings (Khosla et al. 2020), where a listing's views and photos are each other's
    positives, and normalised softmax over categories (Zhai and Wu 2019).
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    projection = whitening(train.features, size, power=True)
    with torch.no_grad():
        features = projection.root(torch.from_numpy(np.concatenate([train.features, train.mirrored])))
        centre = features.mean(0)
        projection.linear.bias.copy_(-projection.linear.weight @ centre)
    features -= centre  # dropout then puts the mean in an absent feature's place
    labels, listings = (torch.tensor(codes) for codes in (train.labels, train.listings))
    by_category = losses.NormalizedSoftmaxLoss(n_classes, projection.linear.out_features)
    by_listing = losses.SupConLoss(training.TEMPERATURE)
    # The bias only centres: it stays, and training sees centred features.
    weight = projection.linear.weight
    groups = [{"params": [weight], "lr": PROJECTION_RATE}, {"params": by_category.parameters(), "lr": 10 * PROJECTION_RATE}]
    optimiser = torch.optim.AdamW(groups, weight_decay=training.WEIGHT_DECAY)
    order = np.argsort(train.listings, kind="stable")
    rows_of = np.split(order, np.flatnonzero(np.diff(train.listings[order])) + 1)
    epochs = math.ceil(PROJECTION_STEPS / math.ceil(len(rows_of) / PROJECTION_BATCH))
    schedule = lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        shuffled = generator.permutation(len(rows_of))
        for start in range(0, len(shuffled), PROJECTION_BATCH):
            rows = np.concatenate([rows_of[listing] for listing in shuffled[start : start + PROJECTION_BATCH]])
            inputs = nn.functional.dropout(features[np.concatenate([rows, rows + len(labels)])], FEATURE_DROPOUT)
            vectors = nn.functional.normalize(inputs @ weight.T, dim=1)
            loss = by_listing(vectors, listings[rows].repeat(2)) + category_weight * by_category(vectors, labels[rows].repeat(2))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        training.check_finite(loss.item())
        schedule.step()
    with torch.no_grad():
        projection.linear.bias.copy_(-weight @ centre)
    return projection


def frozen_embedders(features: np.ndarray, size: int) -> dict[str, nn.Module]:
    """What embeds the frozen backbone's features without training, to be compared with; features: the training photos'."""
    return {"frozen backbone": nn.Identity(), "frozen backbone, whitened": whitening(features, size, power=False)}


def train_candidates(train: training.Photos, config: training.TrainingConfig, n_classes: int) -> dict[str, nn.Module]:
    """What can embed the frozen backbone's features: frozen_embedders(), and a projection for each of CATEGORY_WEIGHTS."""
    candidates = frozen_embedders(train.features, config.embedding_size)
    for weight in progress(CATEGORY_WEIGHTS, "train embeddings", "embedding"):
        name = f"projection, category weight {weight:g}"
        candidates[name] = train_projection(train, config.embedding_size, weight, n_classes, config.seed)
    return candidates


def embed(embedder: nn.Module, features: np.ndarray) -> np.ndarray:
    """(N, D) float32 features -> (N, E) unit rows."""
    with torch.inference_mode():
        return nn.functional.normalize(embedder.cpu()(torch.from_numpy(features)), dim=1).numpy()


def retrieval_figures(embedder: nn.Module, photos: training.Photos, queries: np.ndarray) -> dict[str, float | None]:
    """metrics.retrieval of the rows `queries` among `photos` by an embedder, the mean over listings; None where undefined."""
    vectors = embed(embedder, photos.features)
    found = metrics.retrieval(vectors, queries, photos.labels, photos.listings, photos.clusters, photos.pixels)
    means = {name: float(metrics.by_listing(values, photos.listings[queries]).mean()) for name, values in found.items()}
    return {name: None if math.isnan(mean) else mean for name, mean in means.items()}


def choose_embedder(
    candidates: dict[str, nn.Module], photos: training.Photos, queries: np.ndarray
) -> tuple[str, dict[str, dict]]:
    """The name of the candidate that retrieves best for the validation rows `queries` among training and validation photos.

    Best is by the geometric mean of category P@10, MAP@R and same-listing hit@1 and @10, as far as the data has them: a gain of
    a tenth in one weighs as much as in another, and an embedding that finds the category only does not win.
    Returns the name, and all figures by candidate.
    """
    figures = {name: retrieval_figures(embedder, photos, queries) for name, embedder in candidates.items()}
    judged = ("category_p_at_10", "map_at_r", "same_listing_hit_at_1", "same_listing_hit_at_10")

    def score(name: str) -> float:
        values = [max(figures[name][key], 1e-6) for key in judged if figures[name][key] is not None]
        return float(np.exp(np.mean(np.log(values)))) if values else 0.0

    for name in figures:
        figures[name]["score"] = score(name)
    return max(figures, key=lambda name: figures[name]["score"]), figures
