"""How score_sde's U-Nets number their modules, and the names of each module's tensors in ours."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from lightning_score.interop.base import Renaming
from lightning_score.interop.names import layers

MOST = 9
"""The most levels, and the most residual blocks per level, that are recognized."""


@dataclass(frozen=True)
class Layout:
    """The properties of an architecture that determine its modules.

    Attributes:
        levels: number of resolutions.
        blocks: residual blocks per level.
        resample_blocks: whether residual blocks change the resolution.
        fourier: whether the first module holds Fourier frequencies.
        joins: the kind of the module that joins the features on the way down: "combine" for the image, "conv resampled" for
            a pyramid, "" for none.
        outputs: the source of the output on the way up: "" for the last features, "skip" for all levels, "conv" for a
            pyramid.
        attention: whether each level, from full resolution down, has self-attention.
    """

    levels: int
    blocks: int
    resample_blocks: bool
    fourier: bool
    joins: str
    outputs: str
    attention: tuple[bool, ...]

    def modules(self) -> Iterator[tuple[str, str]]:
        """The kind of every module in the file's order, and its name in ours."""
        if self.fourier:
            yield "frequencies", "conditioning.embedding"
        yield from [("linear", "conditioning.linear1"), ("linear", "conditioning.linear2"), ("conv", "conv_in")]
        yield from self._way_down()
        yield from [("block", "middle.0.residual"), ("attention", "middle.0.attention"), ("block", "middle.1.residual")]
        yield from self._way_up()
        if self.outputs != "skip":
            yield from [("norm", "head.0"), ("conv", "head.2")]

    def _way_down(self) -> Iterator[tuple[str, str]]:
        for level in range(self.levels):
            ours = f"down.{level - 1}."
            if level > 0:
                yield self._change(f"{ours}resample")
                if self.joins:
                    yield self.joins, f"{ours}join.{'conv' if self.joins == 'combine' else 'down.1'}"
            for k in range(self.blocks):
                stage = f"first.{k}" if level == 0 else f"{ours}stages.{k}"
                yield "block", f"{stage}.residual"
                if self.attention[level]:
                    yield "attention", f"{stage}.attention"

    def _way_up(self) -> Iterator[tuple[str, str]]:
        for k, level in enumerate(reversed(range(self.levels))):
            if k > 0:
                yield self._change(f"up.{k}.resample")
            yield from [("block", f"up.{k}.blocks.{j}") for j in range(self.blocks + 1)]
            if self.attention[level]:
                yield "attention", f"up.{k}.attention"
            if self.outputs == "skip" or (self.outputs == "conv" and k == 0):
                yield from [("norm", f"up.{k}.output.head.0"), ("conv", f"up.{k}.output.head.2")]
            elif self.outputs == "conv":
                yield "conv resampled", f"up.{k}.output.up.1"

    def _change(self, ours: str) -> tuple[str, str]:
        return ("block resampled", ours) if self.resample_blocks else ("conv resampled", f"{ours}.module.1")


def find_layout(kinds: list[str]) -> Layout | None:
    """The layout with modules of these kinds, in this order; None if there is none."""
    fourier, plain = kinds[:1] == ["frequencies"], [kind for kind in kinds if kind != "attention"]
    sizes, blocks = range(1, MOST + 1), range(1, MOST + 1)
    for levels, count, resample, joins, outputs in product(
        sizes, blocks, (True, False), ("", "combine", "conv resampled"), ("", "skip", "conv")
    ):
        layout = Layout(levels, count, resample, fourier, joins, outputs, (False,) * levels)
        if [kind for kind, _ in layout.modules() if kind != "attention"] == plain:
            layout = _with_attention(layout, kinds)
            if [kind for kind, _ in layout.modules()] == kinds:
                return layout
    return None


def _with_attention(layout: Layout, kinds: list[str]) -> Layout:
    """The layout with attention in those levels where it follows the first residual block."""
    positions = [i for i, kind in enumerate(kinds) if kind != "attention"]
    names = [ours for kind, ours in layout.modules() if kind != "attention"]
    first = [
        names.index("first.0.residual"),
        *(names.index(f"down.{k}.stages.0.residual") for k in range(layout.levels - 1)),
    ]
    return replace(layout, attention=tuple(kinds[positions[i] + 1] == "attention" for i in first))


class Modules:
    """The numbered modules of a file.

    Args:
        source: the file's tensors.

    Raises:
        InputError: these networks have no such modules, or not in this order.
    """

    def __init__(self, source: Renaming) -> None:
        self.source = source
        numbers = [int(name.split(".")[1]) for name in source.state if name.startswith("all_modules.")]
        kinds = [self._kind(i) for i in range(max(numbers, default=-1) + 1)]
        layout = find_layout(kinds)
        if layout is None:
            known = "a DDPM, DDPM++ or NCSN++ with the noise level as an input"
            raise source.refusal(f"its {len(kinds)} modules are in no order of {known}; {source.first}")
        self.layout = layout
        self._numbers = {ours: i for i, (_, ours) in enumerate(layout.modules())}

    def tensor(self, ours: str, name: str) -> Tensor:
        """The tensor with this name in the module with our name `ours`, without taking it."""
        return self._tensor(f"{self._numbers[ours]}.{name}")

    def filtered(self) -> bool | None:
        """Whether changes of resolution are filtered; None if they are not convolutions, whose names show it."""
        changes = [i for i, (kind, _) in enumerate(self.layout.modules()) if kind == "conv resampled"]
        return self._has(f"{changes[0]}.Conv2d_0.weight") if changes else None

    def _has(self, name: str) -> bool:
        return f"all_modules.{name}" in self.source

    def _tensor(self, name: str) -> Tensor:
        return self.source.state[f"all_modules.{name}"]

    def _kind(self, i: int) -> str:
        if self._has(f"{i}.W"):
            return "frequencies"
        if self._has(f"{i}.weight"):
            return {1: "norm", 2: "linear", 4: "conv"}.get(self._tensor(f"{i}.weight").ndim, "unknown")
        if self._has(f"{i}.Conv_1.weight"):
            outputs, inputs = self._tensor(f"{i}.Conv_0.weight").shape[:2] if self._has(f"{i}.Conv_0.weight") else (0, 0)
            return "block resampled" if self._has(f"{i}.Conv_2.weight") and inputs == outputs else "block"
        if self._has(f"{i}.NIN_3.W"):
            return "attention"
        if self._has(f"{i}.Conv_0.weight"):
            return "combine" if self._tensor(f"{i}.Conv_0.weight").shape[-1] == 1 else "conv resampled"
        if self._has(f"{i}.Conv2d_0.weight"):
            return "conv resampled"
        names = [name for name in self.source.state if name.startswith(f"all_modules.{i}.")]
        why = "has no tensors, as where the resolution changes without a convolution (resamp_with_conv: false)"
        if names:
            why = f"of {', '.join(names[:4])}, belongs to no DDPM, DDPM++ or NCSN++"
        raise self.source.refusal(f"its module {i} {why}")

    def names(self) -> dict[str, str]:
        """Our names of a network's tensors, and those in the file."""
        found = {}
        for i, (kind, ours) in enumerate(self.layout.modules()):
            inner = ""
            if kind in ("combine", "conv resampled"):
                inner = "Conv2d_0." if self._has(f"{i}.Conv2d_0.weight") else "Conv_0."
            found[f"{ours}."] = f"all_modules.{i}.{inner}"
        return {
            **found,
            ".frequencies": ".W",
            **layers(norm1="GroupNorm_0", conv1="Conv_0", shift="Dense_0", norm2="GroupNorm_1", conv2="Conv_1"),
            **layers(skip="Conv_2" if self.layout.resample_blocks else "NIN_0"),
            **layers(norm="GroupNorm_0", query="NIN_0", key="NIN_1", value="NIN_2", out="NIN_3"),
            ".NIN_*.weight": ".NIN_*.W",
            ".NIN_*.bias": ".NIN_*.b",
        }


def take(source: Renaming, ours: str, theirs: str) -> Tensor:
    """A tensor of ours; the file has transposed linear maps (NIN), which in residual blocks are 1x1 convolutions here."""
    tensor = source.take(theirs)
    if ".NIN_" not in theirs or tensor.ndim < 2:
        return tensor
    return tensor.mT[:, :, None, None] if ".skip." in ours else tensor.mT
