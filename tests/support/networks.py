"""Files of random weights of small networks, in the formats of DINOv2's and CLIP's authors."""

import torch
from torch_fidelity.feature_extractor_clip import CLIPVisual

WIDTH, DEPTH = 64, 2


def random_state(shapes, seed=0):
    """Random tensors of these shapes; factors and scales of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    ones = ("gamma", "norm1.weight", "norm2.weight", "norm.weight")
    return {name: 0.1 * torch.randn(shape, generator=generator) + name.endswith(ones) for name, shape in shapes.items()}


def dinov2_file(folder, **changes):
    """The tensors of a DINOv2 with 2 blocks of 64 features, by the names of the authors' file."""
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (96, WIDTH), "mlp.fc2": (WIDTH, 96)}
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + 37**2, WIDTH), "mask_token": (1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    for k in range(DEPTH):
        for name, (out, width) in linear.items():
            shapes |= {f"blocks.{k}.{name}.weight": (out, width), f"blocks.{k}.{name}.bias": (out,)}
        for i in (1, 2):
            shapes |= {f"blocks.{k}.norm{i}.{side}": (WIDTH,) for side in ("weight", "bias")}
            shapes[f"blocks.{k}.ls{i}.gamma"] = (WIDTH,)
    path = folder / "dinov2.pth"
    torch.save(random_state(shapes | changes), path)
    return path


def clip_file(folder):
    """The tensors of a CLIP with 16 features at 32 pixels, by the names of the authors' file."""
    network = CLIPVisual(16, 32, 2, WIDTH, 16)
    state = random_state({name: tensor.shape for name, tensor in network.state_dict().items()})
    path = folder / "clip.pt"
    torch.save(state | {"text_projection": torch.zeros(8, 16)}, path)
    return path
