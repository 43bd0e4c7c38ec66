"""The Frechet distance at Inception's 2048 dimensions beside its peers: `python tests/benchmarks/frechet.py`.

Prints processor seconds on one thread from the same means and covariances, of 5000 examples on either side, and the relative
difference of the values; then the same of 1000 examples, fewer than dimensions.
"""

import lightning_score.torchvision_guard  # noqa: F401

import time

import numpy as np
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


def timed(function, *arguments):
    """The result and the processor seconds."""
    start = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    for n in (5000, 1000):
        statistics = [fit(features(n, scale, seed)) for scale, seed in ((1.0, 1), (1.1, 2))]
        arrays = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in statistics]
        ours, seconds = timed(frechet_distance, *statistics)
        print(f"n = {n}\n  {'lightning_score':<16} {seconds:6.2f} s   {ours:.9g}")
        peers = {
            "torch-fidelity": lambda a, b: fid_statistics_to_metric(a, b, False)["frechet_inception_distance"],
            "scipy's sqrtm": scipy_distance,
        }
        for name, peer in peers.items():
            value, taken = timed(peer, *arrays)
            print(
                f"  {name:<16} {taken:6.2f} s   {taken / seconds:5.1f} times as long, differs by {abs(value / ours - 1):.1e}"
            )
