"""How score_sde's U-Nets number their modules, and where the tensors of each stand in ours."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop.base import Renaming

MOST = 9
"""Most levels, and most residual blocks per level, that are looked for."""


@dataclass(frozen=True)
class Layout:
    """An architecture as far as it decides which modules there are.

    Attributes:
        levels: number of resolutions.
        blocks: residual blocks per level.
        resample_blocks: whether residual blocks change the resolution.
        fourier: whether the first module holds Fourier frequencies.
        joins: the kind of the module that joins the features on the way down: "combine" for the image, "conv resampled" for
            a pyramid, "" for none.
        outputs: what makes the output on the way up: "" for the last features, "skip" for all levels, "conv" for a pyramid.
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
        """The kind of every module in the file's order, and where it stands in ours."""
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
    """The layout whose modules are of these kinds, in this order; None if there is none."""
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
    """The modules of a file, numbered from 0 under one name.

    Args:
        source: the file's tensors.
        prefix: the name.
    """

    def __init__(self, source: Renaming, prefix: str = "all_modules") -> None:
        self.source, self.prefix = source, prefix
        numbers = [int(name.split(".")[1]) for name in source.state if name.startswith(f"{prefix}.")]
        self.count = max(numbers, default=-1) + 1

    def __contains__(self, name: str) -> bool:
        return f"{self.prefix}.{name}" in self.source

    def peek(self, name: str) -> Tensor:
        """A tensor that stays to be taken."""
        return self.source.state[f"{self.prefix}.{name}"]

    def kinds(self) -> list[str]:
        """The kind of every module.

        Raises:
            InputError: one is of no kind that these networks have.
        """
        return [self._kind(i) for i in range(self.count)]

    def _kind(self, i: int) -> str:
        if f"{i}.W" in self:
            return "frequencies"
        if f"{i}.weight" in self:
            return {1: "norm", 2: "linear", 4: "conv"}.get(self.peek(f"{i}.weight").ndim, "unknown")
        if f"{i}.Conv_1.weight" in self:
            outputs, inputs = self.peek(f"{i}.Conv_0.weight").shape[:2] if f"{i}.Conv_0.weight" in self else (0, 0)
            return "block resampled" if f"{i}.Conv_2.weight" in self and inputs == outputs else "block"
        if f"{i}.NIN_3.W" in self:
            return "attention"
        if f"{i}.Conv_0.weight" in self:
            return "combine" if self.peek(f"{i}.Conv_0.weight").shape[-1] == 1 else "conv resampled"
        require(
            f"{i}.Conv2d_0.weight" in self, f"not a {self.source.kind} checkpoint that can be converted: {self._strange(i)}"
        )
        return "conv resampled"

    def _strange(self, i: int) -> str:
        names = [name for name in self.source.state if name.startswith(f"{self.prefix}.{i}.")]
        if names:
            return f"its module {i}, of {', '.join(names[:4])}, is none of a DDPM, DDPM++ or NCSN++"
        return (
            f"its module {i} has no tensors, as where the resolution changes without a convolution (resamp_with_conv: false)"
        )

    def rename(self, layout: Layout) -> dict[str, Tensor]:
        """Takes all tensors of all modules under the names that they have in ours."""
        state: dict[str, Tensor] = {}
        for i, (kind, ours) in enumerate(layout.modules()):
            state |= RENAME[kind](self.source, f"{self.prefix}.{i}", ours)
        return state


def _frequencies(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.frequencies": source.take(f"{theirs}.W")}


def _resampled(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    return source.layer(f"{theirs}.{'Conv2d_0' if f'{theirs}.Conv2d_0.weight' in source else 'Conv_0'}", ours)


def _combine(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    return source.layer(f"{theirs}.Conv_0", ours)


def _block(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    names = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "shift", "GroupNorm_1": "norm2", "Conv_1": "conv2"}
    state: dict[str, Tensor] = {}
    for name, our_name in names.items():
        state |= source.layer(f"{theirs}.{name}", f"{ours}.{our_name}")
    if f"{theirs}.NIN_0.W" in source:
        state |= _nin(source, f"{theirs}.NIN_0", f"{ours}.skip", pixels=True)
    elif f"{theirs}.Conv_2.weight" in source:
        state |= source.layer(f"{theirs}.Conv_2", f"{ours}.skip")
    return state


def _attention(source: Renaming, theirs: str, ours: str) -> dict[str, Tensor]:
    state = source.layer(f"{theirs}.GroupNorm_0", f"{ours}.norm")
    for i, name in enumerate(("query", "key", "value", "out")):
        state |= _nin(source, f"{theirs}.NIN_{i}", f"{ours}.{name}")
    return state


def _nin(source: Renaming, theirs: str, ours: str, pixels: bool = False) -> dict[str, Tensor]:
    """A linear map of the channels, saved transposed; as a 1x1 convolution for `pixels`."""
    weight = source.take(f"{theirs}.W").mT.contiguous()
    return {f"{ours}.weight": weight[:, :, None, None] if pixels else weight, f"{ours}.bias": source.take(f"{theirs}.b")}


RENAME: dict[str, Callable[[Renaming, str, str], dict[str, Tensor]]] = {
    "frequencies": _frequencies,
    "linear": Renaming.layer,
    "conv": Renaming.layer,
    "norm": Renaming.layer,
    "block": _block,
    "block resampled": _block,
    "attention": _attention,
    "combine": _combine,
    "conv resampled": _resampled,
}
