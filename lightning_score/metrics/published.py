"""Features of networks of later publications: DINOv2, CLIP, and the spatial ones of Inception."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_score.errors import require
from lightning_score.files import LocalPath, file_hash, read_tensors
from lightning_score.metrics.features import Activations, ImageFeatures, InceptionFeatures
from lightning_score.metrics.weights import WeightsFile

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer

DINOV2 = WeightsFile(
    "DINOv2",
    "DINOv2Features",
    "LIGHTNING_SCORE_DINOV2",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)
CLIP_SHA256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
CLIP = WeightsFile(
    "CLIP",
    "CLIPFeatures",
    "LIGHTNING_SCORE_CLIP",
    f"https://openaipublic.azureedge.net/clip/models/{CLIP_SHA256}/ViT-L-14-336px.pt",
    CLIP_SHA256,
)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Means and standard deviations of color channels between 0 and 1."""
DINOV2_NAMES = {384: "dinov2_vits14", 768: "dinov2_vitb14", 1024: "dinov2"}
"""Names of features by their number; the publications' network has no addition."""


class SpatialFeatures(InceptionFeatures):
    """2023 features of Inception that know where things are: 7 channels of an inner layer at 17x17 places, for sFID.

    Nash et al. 2021, arXiv:2103.03841; mixed_6/conv in ADM's evaluator (Dhariwal and Nichol 2021, arXiv:2105.05233), in its
    order. Weights and resize are those of `InceptionFeatures`.
    """

    name = "spatial"
    num_features = 17 * 17 * 7
    num_logits = 0
    layers = ("768",)
    ending = "_s"

    def activations(self, x: Tensor) -> Activations:
        found: list[Tensor] = []
        layer = self.network.get_submodule("Mixed_6d.branch1x1")
        handle = layer.register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.outputs(x)
        finally:
            handle.remove()
        features = found[0][:, :7].permute(0, 2, 3, 1).flatten(1).float()
        return Activations(features, features.new_zeros(len(x), 0))


class DINOv2Features(ImageFeatures):
    """1024 features of DINOv2 ViT-L/14, the normalized class token, for FD-DINOv2.

    Stein et al. 2023, arXiv:2306.04675; Oquab et al. 2023, arXiv:2304.07193. Resize and normalization are edm2's.

    Args:
        weights: path of dinov2_vitl14_pretrain.pth, or of ViT-S/14 or ViT-B/14, which change the name of the features. null:
            the path in the environment variable LIGHTNING_SCORE_DINOV2, or the file in torch's hub folder, which is
            downloaded (1.2 GB) if it is missing.

    Raises:
        InputError: the weights cannot be read, or are of another network.
    """

    resize = "224x224, bicubic with antialiasing; ImageNet's mean and deviation (edm2)"

    def __init__(self, weights: LocalPath | None = None) -> None:
        super().__init__()
        with DINOV2.explaining(weights):
            self.network = dinov2(read_tensors(DINOV2.find(weights)))
        self.num_features = self.network.hidden_dim
        self.name = DINOV2_NAMES.get(self.num_features, f"dinov2_{self.num_features}")
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        images = self.colors(x).to(self.network.class_token.dtype)
        images = F.interpolate(images, (224, 224), mode="bicubic", antialias=True)
        features: Tensor = self.network(normalized(images, *IMAGENET))
        return features.float()


class CLIPFeatures(ImageFeatures):
    """768 features of CLIP ViT-L/14 at 336 pixels, of unit length, for CMMD.

    Jayasumana et al. 2024, arXiv:2401.09603; Radford et al. 2021, arXiv:2103.00020; the network is torch-fidelity's.

    Args:
        weights: path of ViT-L-14-336px.pt, or a file of the tensors of another CLIP, which changes the name of the features.
            null: the path in the environment variable LIGHTNING_SCORE_CLIP, or the file in torch's hub folder, which is
            downloaded (890 MB) if it is missing.

    Raises:
        InputError: the weights cannot be read, or are of another network.
    """

    measured = ("cmmd", "fid")

    def __init__(self, weights: LocalPath | None = None) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_clip import build_model  # takes seconds to import

        with CLIP.explaining(weights):
            tensors = clip_tensors(CLIP.find(weights))
            require("text_projection" in tensors, f"not those of CLIP, which have text_projection; {listed(tensors)}")
            self.num_features = tensors["text_projection"].shape[1]
            self.network = build_model(tensors, torch.float32).visual
        self.side = self.network.input_resolution
        published = (self.num_features, self.side) == (768, 336)
        self.name = "clip" if published else f"clip_{self.num_features}_{self.side}"
        self.resize = f"center to {self.side}x{self.side}, bicubic with antialiasing, bytes; OpenAI's mean and deviation"
        self.freeze()

    def extract(self, x: Tensor) -> Tensor:
        x = self.colors(x)
        height, width = x.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = x[:, :, top : top + side, left : left + side].to(next(self.network.parameters()).dtype)
        images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).round().clamp(0, 255)
        return F.normalize(self.network(normalized(images, *OPENAI))).float()


def normalized(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of 0 to 255 in standard deviations of their color channels."""
    center, spread = (255 * images.new_tensor(numbers)[:, None, None] for numbers in (mean, std))
    return (images - center) / spread


def listed(tensors: Any) -> str:
    """The first names in a file, for a message."""
    names = [*tensors] if isinstance(tensors, Mapping) else []
    return f"the file has {', '.join(map(str, names[:3]))}{' ...' if len(names) > 3 else ''}" if names else "it has no names"


def dinov2(tensors: Mapping[str, Tensor]) -> "VisionTransformer":
    """DINOv2 as torchvision's vision transformer: factors of residual branches become part of the layers before them, and
    the position embeddings are interpolated to those of 224 pixels as by the authors.

    Args:
        tensors: of the authors' file.

    Raises:
        InputError: they are of another network.
    """
    from torchvision.models import VisionTransformer  # takes a second to import

    known = isinstance(tensors, Mapping) and "blocks.0.ls1.gamma" in tensors and "blocks.0.mlp.fc1.weight" in tensors
    require(known, f"not those of DINOv2 ViT-S/14, ViT-B/14 or ViT-L/14; {listed(tensors)}")
    require("register_tokens" not in tensors, "those of DINOv2 with registers; give those without")
    width, depth = tensors["cls_token"].shape[-1], sum(name.endswith("ls1.gamma") for name in tensors)
    network = VisionTransformer(224, 14, depth, width // 64, width, tensors["blocks.0.mlp.fc1.weight"].shape[0])
    network.heads = nn.Sequential()
    names = {"class_token": "cls_token"}
    for side in ("weight", "bias"):
        names |= {f"conv_proj.{side}": f"patch_embed.proj.{side}", f"encoder.ln.{side}": f"norm.{side}"}
        for k in range(depth):
            ours, theirs = f"encoder.layers.encoder_layer_{k}", f"blocks.{k}"
            names |= {f"{ours}.ln_{i}.{side}": f"{theirs}.norm{i}.{side}" for i in (1, 2)}
            names |= {f"{ours}.mlp.0.{side}": f"{theirs}.mlp.fc1.{side}", f"{ours}.mlp.3.{side}": f"{theirs}.mlp.fc2.{side}"}
            names[f"{ours}.self_attention.in_proj_{side}"] = f"{theirs}.attn.qkv.{side}"
            names[f"{ours}.self_attention.out_proj.{side}"] = f"{theirs}.attn.proj.{side}"
    state = {ours: tensors[theirs].float() for ours, theirs in names.items()}
    for k in range(depth):
        for layer, factor in (("self_attention.out_proj", "ls1"), ("mlp.3", "ls2")):
            gamma = tensors[f"blocks.{k}.{factor}.gamma"].float()
            for name in (f"encoder.layers.encoder_layer_{k}.{layer}.{side}" for side in ("weight", "bias")):
                state[name] = state[name] * gamma.reshape(-1, *[1] * (state[name].ndim - 1))
    network.load_state_dict(state | {"encoder.pos_embedding": _positions(tensors["pos_embed"].float(), 16)})
    return network


def _positions(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + M^2, D) for side x side patches, with the authors' scale factor (side + 0.1)/M."""
    token, patches = embedding[:, :1], embedding[:, 1:]
    before = math.isqrt(patches.shape[1])
    if before != side:
        grid = patches.unflatten(1, (before, before)).permute(0, 3, 1, 2)
        scale = (side + 0.1) / before
        patches = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic").flatten(2).mT
    return torch.cat([token, patches], 1)


def clip_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a CLIP: of a file of tensors, or of OpenAI's file of code, if it is unchanged.

    Raises:
        InputError: it is neither.
    """
    if not (is_zipfile(path) and any(name.endswith("constants.pkl") for name in ZipFile(path).namelist())):
        found = read_tensors(path)
        require(isinstance(found, dict), "not a file of tensors by their names")
        return {**found}
    same = file_hash(path) == CLIP_SHA256
    require(same, "holds code, and is not the file that OpenAI published, so it is not loaded")
    return dict(torch.jit.load(path, map_location="cpu").state_dict())
