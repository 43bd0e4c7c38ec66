"""Features of DINOv2, CLIP and ADM's evaluator, and CMMD: equal to what their authors compute."""

import urllib.error

import numpy as np
import pytest
import torch
from inception import colors
from networks import DEPTH, WIDTH, clip_file, dinov2_file
from scipy.linalg import sqrtm
from torch.nn import functional as F
from torch_fidelity.feature_extractor_clip import build_model

from lightning_score.errors import InputError
from lightning_score.metrics import CLIPFeatures, DINOv2Features, ModuleFeatures, SpatialFeatures, clip_distance, clip_floor
from lightning_score.metrics.features import InceptionFeatures
from lightning_score.metrics.published import CLIP, DINOV2
from lightning_score.metrics.reference import check_fit, reference_of_file
from lightning_score.metrics.statistics import ReferenceFile
from lightning_score.metrics.totals import MetricTotals

SIZES = {"pooled": 1, "spatial": 2}


class Pooled(torch.nn.AdaptiveAvgPool2d):
    def forward(self, x):
        return super().forward(x.float())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {DINOv2Features: dinov2_file(folder), CLIPFeatures: clip_file(folder)}


def authors_dinov2(w, x):
    """DINOv2 by its equations: attention and perceptrons with residual factors, of images (N, 3, 224, 224)."""

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]

    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14).flatten(2).mT
    grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    grid = (
        F.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 256, WIDTH)
    )
    token = (w["cls_token"] + w["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([token, patches + grid], 1)
    for k in range(DEPTH):
        q, key, value = linear(norm(x, f"blocks.{k}.norm1"), f"blocks.{k}.attn.qkv").chunk(3, -1)
        attended = (q @ key.mT / WIDTH**0.5).softmax(-1) @ value  # one head
        x = x + w[f"blocks.{k}.ls1.gamma"] * linear(attended, f"blocks.{k}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1"))
        x = x + w[f"blocks.{k}.ls2.gamma"] * linear(hidden, f"blocks.{k}.mlp.fc2")
    return norm(x, "norm")[:, 0]


def test_dinov2_is_the_authors(files):
    features, images = DINOv2Features(str(files[DINOv2Features])), colors(2)
    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    expected = authors_dinov2(torch.load(files[DINOv2Features], weights_only=True), x)
    torch.testing.assert_close(features(images).features, expected, rtol=1e-3, atol=1e-4)
    gray = images[:, :1]
    torch.testing.assert_close(features(gray).features, features(gray.repeat(1, 3, 1, 1)).features)
    assert features.name == "dinov2_64"


def test_clip_is_torch_fidelitys_at_unit_length(files):
    features, images = CLIPFeatures(str(files[CLIPFeatures])), colors(2)
    network = build_model(torch.load(files[CLIPFeatures], weights_only=True), torch.float32).visual
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    x = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(features(images).features, F.normalize(network(x)), rtol=1e-3, atol=1e-4)
    wide = F.pad(images, (5, 6))
    torch.testing.assert_close(features(wide).features, features(images).features)  # the center


@pytest.mark.parametrize(("cls", "file"), [(DINOv2Features, DINOV2), (CLIPFeatures, CLIP)])
def test_other_weights_name_the_fix(cls, file, files, tmp_path, monkeypatch):
    fix = rf"Download {file.url} and.*option `weights` of {cls.__name__} or in the environment variable {file.variable}"

    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=f"nor downloaded.*Name or service not known.*{fix}"):
        cls()
    damaged, other, code = tmp_path / "damaged.pth", tmp_path / "other.pth", tmp_path / "code.pt"
    damaged.write_bytes(files[cls].read_bytes()[:1000])
    torch.save({"weight": torch.zeros(1)}, other)
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(code))
    (another,) = (path for kind, path in files.items() if kind is not cls)
    registers = dinov2_file(tmp_path, register_tokens=(1, 4, WIDTH))
    narrow = tmp_path / "narrow.pth"
    sizes = {"blocks.0.ls1.gamma": [3], "blocks.0.mlp.fc1.weight": [4, 3], "cls_token": [1, 1, 3], "text_projection": [3, 3]}
    torch.save({name: torch.ones(size) for name, size in sizes.items()}, narrow)
    for path in (damaged, other, code, another, registers, narrow, tmp_path / "absent.pth"):
        with pytest.raises(InputError, match=f"{path.name}.*{fix}"):
            cls(str(path))
    monkeypatch.setenv(file.variable, str(files[cls]))
    assert cls().num_features == cls(str(files[cls])).num_features


def unit(n, seed, dimension=8, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dimension, generator=generator) + 1 + shift * torch.eye(dimension)[0])


def test_cmmd_is_the_authors_and_its_limit_unbiased():
    """As their code computes it, with the pairs of one example."""
    real, fake = unit(60, 1), unit(40, 2, shift=1.0)

    def mean(x, y):
        products = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.mT
        return torch.exp(-products / (2 * 10**2)).mean()

    expected = 1000 * float(mean(real.double(), real.double()) + mean(fake.double(), fake.double())
                            - 2 * mean(real.double(), fake.double()))  # fmt: skip
    assert clip_distance(real, fake)[0].value == pytest.approx(expected, rel=1e-6)
    same = [clip_distance(unit(60, 2 * k), unit(40, 2 * k + 1)) for k in range(200)]
    biased, limits = (torch.tensor([pair[i].value for pair in same]) for i in (0, 1))
    assert abs(float(limits.mean())) < 3 * float(limits.std()) / 200**0.5
    floors = [clip_floor(unit(60, 2 * k), 40) for k in range(200)]
    assert float(torch.tensor(floors).mean()) == pytest.approx(float(biased.mean()), rel=0.05)
    errors = torch.tensor([pair[0].error for pair in same])
    assert 0.85 < float((limits.abs() <= 2 * errors).double().mean()) <= 1.0


def frechet(one, other):
    (m1, c1), (m2, c2) = one, other
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)


def adm_precision_and_recall(real, fake):
    """With squared distances, and radii that are those to the third neighbor, as ADM's evaluator."""
    apart = [np.square(x[:, None] - y[None]).sum(2) for x, y in ((real, real), (fake, fake), (real, fake))]
    radii = [np.partition(each, 3, axis=1)[:, 3] for each in apart[:2]]
    return (apart[2] <= radii[0][:, None]).any(0).mean(), (apart[2] <= radii[1]).any(1).mean()


def moments(vectors):
    return vectors.mean(0), np.cov(vectors, rowvar=False)


def test_adms_protocol(tmp_path, cache):
    """Its reference batch: statistics of more images than `arr_0`, whose manifold is that of precision and recall."""
    pooled, spatial = (ModuleFeatures(Pooled(size), 3 * size**2, name) for name, size in SIZES.items())
    spatial.ending = "_s"
    images = colors(150).double()
    everything, real, fake = images, images[:40], 0.7 * images.flip(0)[:30] + 30
    arrays = {"arr_0": real.permute(0, 2, 3, 1).numpy().astype(np.uint8)}
    for features in (pooled, spatial):
        mean, covariance = moments(features(everything).features.double().numpy())
        arrays |= {f"mu{features.ending}": mean, f"sigma{features.ending}": covariance}
    np.savez(tmp_path / "adm.npz", **arrays)
    file = ReferenceFile(tmp_path / "adm.npz")
    for features in (pooled, spatial):
        check_fit(features, fake[:2], file)
        totals, reference = (
            MetricTotals(features, len(fake), torch.device("cpu")),
            reference_of_file(file, features, len(fake)),
        )
        totals.update(range(len(fake)), fake)
        found, vectors = totals.measure(reference, all_metrics=True), features(fake).features.double().numpy()
        expected = frechet(moments(vectors), (arrays[f"mu{features.ending}"], arrays[f"sigma{features.ending}"]))
        assert found["fid"].value == pytest.approx(expected, rel=1e-3)
        precision, recall = adm_precision_and_recall(reference.kept[: len(fake)].double().numpy(), vectors)
        assert (found["precision"].value, found["recall"].value) == pytest.approx((precision, recall))
    with pytest.raises(InputError, match=r"has images of 32x32, and the samples have 16x16"):
        check_fit(pooled, fake[:2, :, :16, :16], file)


@pytest.mark.slow
def test_spatial_features_are_seven_channels_of_mixed_6_in_adms_order(inception_weights):
    features, images = SpatialFeatures(str(inception_weights)), colors(2)
    x = InceptionFeatures(str(inception_weights)).network  # another network with the same weights
    first = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
    names = [*first, *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c"))]
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    inner = (resize(images.float(), (299, 299), align_corners=False) - 128) / 128
    for name in names:
        inner = getattr(x, name)(inner)
    maps = x.Mixed_6d.branch1x1(inner)  # (N, 192, 17, 17)
    found = features(images).features.reshape(2, 17, 17, 7)
    torch.testing.assert_close(found, maps[:, :7].permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)
