"""Markov chains for a density: runs a sampler, and keeps enough of its steps to judge them."""

from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lightning_score.errors import InputError, require
from lightning_score.memory import require_room
from lightning_score.sampling import Corrector, NoiseStream, Sampler, Samples
from lightning_score.sampling.diverged import Diverged, DivergenceMonitor
from lightning_score.sampling.step import Move
from lightning_score.score.density import DensityScore
from lightning_score.score.function import ScoreField

KEPT = 2**21
"""Numbers kept of all chains, about."""
FEWEST, MOST = 20, 1000
"""Draws kept of a chain unless `thin` sets their number."""
COORDINATES = 20
"""Kept of the chains: the first ones."""
ADJUSTED = "--sampler MarkovChain --sampler.corrector MALA"


class Chains:
    """Markov chains for a density: the sampler, and what is kept of its steps.

    Kept are every `thin`-th step after `burn_in` steps at the last temperature, and of these the first 20 coordinates and
    the log density, so that memory and the time of the diagnostics do not grow with the number of steps.

    Args:
        sampler: makes the steps.
        score: of the density.
        num_samples: number of chains.
        burn_in: steps before the first that may be kept; null: half of them.
        thin: steps from one that is kept to the next; null: as many as leave 20 to 1000 draws of a chain and about two
            million numbers in all.

    Raises:
        InputError: the sampler does not fit the density, all steps are burn-in, or the draws do not fit into memory.
    """

    def __init__(self, sampler: Sampler, score: DensityScore, num_samples: int, burn_in: int | None, thin: int | None):
        self.sampler, self.score, self.num_samples, name = sampler, score, num_samples, type(sampler).__name__
        needs = "needs the laws of a density with noise, which are not known"
        fix = "give LangevinDynamics, MarkovChain (with a corrector) or AnnealedLangevin (which cools down)"
        require(not sampler.needs_noise, f"sampler={name}: {needs}; {fix}")
        sampler.check(score.process)
        times = sampler.grid(score.process)
        require(len(times) == 1 or score.cools, f"sampler={name}: cools down; give --initial_temperature, as 50")
        require(len(times) > 1 or not score.cools, f"--initial_temperature: {name} does not cool; give AnnealedLangevin")
        moves = sampler.plan(score.process, times)
        self.rejects = cast(Corrector, moves[-1].method).rejects
        self.moves, self.steps = len(moves), len([m for m in moves if m.t == moves[-1].t and m.method.evaluations])
        self.burn_in = self.steps // 2 if burn_in is None else burn_in
        require(self.burn_in < self.steps, f"--burn_in {burn_in}: must be below the number of steps, {self.steps}")
        size = int(np.prod(score.shape))
        columns = min(size, COORDINATES)
        draws = min(MOST, max(FEWEST, KEPT // (num_samples * (columns + 1))))
        self.thin = thin or -(-(self.steps - self.burn_in) // draws)
        self.draws = -(-(self.steps - self.burn_in) // self.thin)
        needed = 8 * num_samples * (self.draws * (columns + 1) + 8 * size)
        require_room(needed, f"--num_samples {num_samples}", "draw fewer, or give a larger --thin")
        self.names = [f"x[{', '.join(map(str, np.unravel_index(i, score.shape)))}]" for i in range(columns)]
        self.names += ["log density"] if score.has_log_density else []
        self._step, self._kept, self._accepted = 0, list[Tensor](), torch.zeros(num_samples, dtype=torch.int64)

    @torch.no_grad()
    def draw(self, seed: int) -> Samples:
        """Runs the chains.

        Args:
            seed: of the random streams; chain k is the same for any number of chains.

        Raises:
            InputError: the density fails, or a chain diverges.
        """
        numbers = range(self.num_samples)
        noise = NoiseStream(seed, numbers, self.score.shape)
        try:
            return self.sampler(self.score, noise, progress=True, observe=DivergenceMonitor(numbers, self._observe))
        except Diverged as error:
            raise InputError(
                f"sampler={type(self.sampler).__name__}: {len(error.indices)} of {self.num_samples} chains diverged at step "
                f"{self._step + 1} of {self.moves}, such as chain {error.indices[0]}; give a smaller step size"
                f"{'' if self.rejects else f', or a sampler that rejects such steps, as {ADJUSTED}'}"
            ) from error

    def _observe(self, score: ScoreField, move: Move, before: Tensor, after: Tensor, state: Any) -> None:
        """Counts the accepted moves after burn-in, and keeps draws."""
        self._step += 1
        left = self.moves - self._step
        if left >= self.steps - self.burn_in:
            return
        self._accepted += (after != before).flatten(1).any(1)
        if left % self.thin == 0:
            columns, evaluations = [after.flatten(1)[:, :COORDINATES]], self.score.evaluations
            if self.score.has_log_density:
                columns.append(cast(Tensor, self.score.log_density(after, move.t)).unsqueeze(1).to(after))
            self.score.evaluations = evaluations  # those of the sampler alone
            self._kept.append(torch.cat(columns, 1))

    @cached_property
    def kept(self) -> np.ndarray[Any, Any]:
        """The draws that are kept, (chains, draws, names)."""
        return torch.stack(self._kept, 1).numpy()

    @property
    def kept_steps(self) -> list[int]:
        """The numbers of their steps, from 1, at the last temperature, (draws,)."""
        return list(range(self.steps - (self.draws - 1) * self.thin, self.steps + 1, self.thin))

    @property
    def acceptance(self) -> Tensor | None:
        """The share of accepted moves of every chain after burn-in, (chains,); None for steps that are never rejected."""
        return self._accepted.double() / (self.steps - self.burn_in) if self.rejects else None

    def __str__(self) -> str:
        cooled = " at the last temperature" if self.score.cools else ""
        lines = [
            f"{self.num_samples} chains of {self.steps} steps{cooled}: {type(self.sampler).__name__}",
            f"{self.draws} draws of each chain are kept: after {self.burn_in} steps, one in {self.thin}",
        ]
        if (size := int(np.prod(self.score.shape))) > COORDINATES:
            lines.append(f"the first {COORDINATES} of {size} coordinates")
        if (accepted := self.acceptance) is None:
            lines.append("no step is rejected: the law has a bias, which vanishes with the step size")
        else:
            low, high = accepted.aminmax()
            lines.append(f"acceptance {accepted.mean():.3f}; of single chains {low:.3f} to {high:.3f}")
        return "\n".join(lines)
