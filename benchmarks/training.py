"""How much an epoch of head training costs on cached features, beside forwarding the frozen backbone anew in every epoch.

Run     python benchmarks/training.py [--backbone resnet50] [--quick]
Prints a table on stderr and, last, one JSON line: uncached_epoch_over_cached.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import results
import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clean_images
import clean_tabular_data
import dataset
import train
from demo import sample
from marketplace.models import backbone

CACHED_EPOCHS = 10


def seconds_of(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="efficientnet_lite0", help="with random weights (default: %(default)s)")
    parser.add_argument("--listings", default=260, type=int, help="of the synthetic marketplace (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="39 listings only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        sample.write(data_dir / "raw", listings=39 if args.quick else args.listings)
        for main_of_stage in (clean_tabular_data.main, clean_images.main, dataset.main):
            if main_of_stage(["--data", folder]):
                return 1
        mean, std = backbone.normalisation(args.backbone)
        photos = dataset.ListingPhotos(data_dir, "train", train.evaluation_transform(224, list(mean), list(std)))
        photo_network = backbone.build(args.backbone, "none", len(photos.classes), 224)
        frozen = backbone.frozen_backbone(photo_network, 224, "cpu")  # ONNX Runtime: the uncached side runs as fast as ours can
        labels = torch.tensor(photos.table["label"].to_numpy())
        optimiser = torch.optim.AdamW(photo_network.head.parameters(), lr=1e-3)

        def step(features: torch.Tensor, targets: torch.Tensor) -> None:
            loss = nn.functional.cross_entropy(photo_network.head(features), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        def uncached_epoch() -> None:
            for pixels, targets, _ in DataLoader(photos, 32, shuffle=True, num_workers=2):
                step(frozen(pixels), targets)

        views: list[torch.Tensor] = []
        loader = DataLoader(photos, 32, num_workers=2)
        caching_s = seconds_of(lambda: views.append(train.training.forward(frozen, loader, "forward")))

        def cached_epoch() -> None:
            for rows in torch.randperm(len(labels)).split(train.training.HEAD_BATCH):
                step(views[0][rows], labels[rows])

        cached_epoch()
        cached_s = seconds_of(lambda: [cached_epoch() for _ in range(CACHED_EPOCHS)]) / CACHED_EPOCHS
        uncached_s = seconds_of(uncached_epoch)
    print(f"{len(labels)} training photos, {args.backbone}, one view", file=sys.stderr)
    print(f"caching the features, once   {caching_s:9.4f} s", file=sys.stderr)
    print(f"an epoch, backbone run anew     {uncached_s:9.4f} s", file=sys.stderr)
    print(f"an epoch on the cache        {cached_s:9.4f} s", file=sys.stderr)
    figures = {"photos": len(labels), "uncached_epoch_over_cached": round(uncached_s / cached_s, 1)}
    print(json.dumps(figures))
    if not args.quick:
        results.save("training", figures, results.command())
    return 0


if __name__ == "__main__":
    sys.exit(main())
