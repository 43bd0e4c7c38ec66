"""The whole way from images to numbers, on the same images and the same weights as torch-fidelity."""

import pytest
import torch
import torch_fidelity
from inception import colors
from scipy.sparse.linalg import eigs

from lightning_score.metrics import InceptionFeatures
from lightning_score.metrics.reference import compute
from lightning_score.metrics.totals import MetricTotals

N = 16


class Images(torch.utils.data.Dataset):
    """uint8 images, as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fid_kid_inception_score_precision_and_recall_are_torch_fidelitys(inception_weights, monkeypatch):
    path = str(inception_weights)
    real = colors(N)
    fake = (0.6 * real.flip(0).float() + 40).to(torch.uint8)
    monkeypatch.setattr("numpy.linalg.eigvals", lambda product: eigs(product, N - 1, return_eigenvectors=False))  # its rank
    expected = torch_fidelity.calculate_metrics(
        **{"input1": Images(fake), "input2": Images(real), "feature_extractor_weights_path": path},
        **{"feature_extractor": "inception-v3-compat", "feature_layer_prc": "2048", "kid_subset_size": N, "kid_subsets": 2},
        **dict.fromkeys(("fid", "kid", "isc", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("samples_shuffle", "cuda", "verbose", "cache"), False),
    )
    features = InceptionFeatures(path)
    totals = MetricTotals(features, N, torch.device("cpu"))
    for rows in torch.arange(N).split(6):
        totals.update(rows.tolist(), fake[rows])
    found = totals.measure(compute(real, features, n=1), all_metrics=True)  # without the floor, which is not compared
    for ours, theirs in {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "is": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert found[ours].value == pytest.approx(expected[theirs], rel=1e-3, abs=1e-6), ours
    assert found["fid"].value > 1e-3
