"""The Frechet distance at Inception's 2048 dimensions, here and in peers, from the same means and covariances."""

import lightning_score.lean_imports  # noqa: F401

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from lightning_score.metrics import fit, frechet_distance


def features(n, scale, seed):
    """Correlated features, rectified as Inception's are, (n, 2048)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.02, 1, 2048) / 45
    return scale * (torch.randn(n, 2048, generator=generator) @ mixing + 0.3).relu()


def scipy_distance(first, second):
    """As pytorch-fid: the root of a matrix that is not symmetric."""
    root = scipy.linalg.sqrtm(first["sigma"] @ second["sigma"]).real
    mean = first["mu"] - second["mu"]
    return mean @ mean + np.trace(first["sigma"] + second["sigma"] - 2 * root)


@pytest.mark.parametrize("n", [5000, 1000])
def test_frechet_distance(n, compare, note):
    statistics = [fit(features(n, scale, seed)) for scale, seed in ((1.0, 1), (1.1, 2))]
    arrays = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in statistics]
    found = {}

    def ours():
        found["ours"] = frechet_distance(*statistics)

    def torch_fidelity():
        found["torch-fidelity"] = fid_statistics_to_metric(*arrays, False)["frechet_inception_distance"]

    def scipy_root():
        found["scipy's sqrtm"] = scipy_distance(*arrays)

    what = f"Frechet distance, 2048 dimensions, {n} examples"
    compare(what, ours, {"torch-fidelity": torch_fidelity, "scipy's sqrtm": scipy_root}, rounds=1, warmup=0)
    for peer in ("torch-fidelity", "scipy's sqrtm"):
        note(what, "value", peer, "differs by", f"{abs(found[peer] / found['ours'] - 1):.1e}")
