import numpy as np
import pytest

from marketplace.retrieval import vectors as vector_search
from marketplace.retrieval.vectors import FILES, VectorIndex
from tests.retrieval.vector_contract import Shop, VectorContract


class Faiss:
    """Indexes in the shops' folders."""

    def __init__(self, kind: str):
        self.kind = kind

    def build(self, shop: Shop) -> VectorIndex:
        path = shop.folder / FILES["photos"].index
        vector_search.write(vector_search.build(shop.vectors, self.kind, recall=0.98, keys=shop.keys), path)
        return self._opened(shop)

    def update(self, before: Shop, after: Shop) -> VectorIndex:
        paths = [shop.folder / FILES["photos"].index for shop in (before, after)]
        gone, came = np.setdiff1d(before.keys, after.keys), ~np.isin(after.keys, before.keys)
        vector_search.update(*paths, gone, after.vectors[came], after.keys[came])
        return self._opened(after)

    def _opened(self, shop: Shop) -> VectorIndex:
        np.save(shop.folder / FILES["photos"].vectors, shop.vectors)
        np.save(shop.folder / FILES["photos"].keys, shop.keys)
        return VectorIndex.open(shop.folder, FILES["photos"])


class TestFaiss(VectorContract):
    @pytest.fixture(scope="class", params=["flat", "ivf"])
    @classmethod
    def engine(cls, request) -> Faiss:
        return Faiss(request.param)
