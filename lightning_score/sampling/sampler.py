"""Samplers: a time grid, a predictor, a corrector and a final denoise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling.compiled import compiled
from lightning_score.sampling.corrector import Corrector
from lightning_score.sampling.ends import FinalDenoise, Initial, LastMean, Prior
from lightning_score.sampling.from_noise import moves_of
from lightning_score.sampling.grid import TimeGrid, Uniform, warn_between_levels
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.plan import plan_of
from lightning_score.sampling.predictor import Predictor, ReverseDiffusion
from lightning_score.sampling.step import Move
from lightning_score.score.function import ClippedScore, PriorScore, ScoreField

Observer = Callable[[ScoreField, Move, Tensor, Tensor, Any], None]
"""Called after every move with the score, the move, x before and after it, (B, ...), and the method's state before it."""


class Samples(NamedTuple):
    """What a sampler returns: `x` (B, ...), `raw` (before the final denoise), `nfe` and, on request, the trajectory; where
    samples depend on one another, the least effective sample size of the group of each, `ess` (B,).
    """

    x: Tensor
    raw: Tensor
    nfe: float
    trajectory: list[Tensor] | None
    ess: Tensor | None = None

    def rows(self, rows: Sequence[int]) -> "Samples":
        """Those of some rows, on which the evaluations of all are counted."""
        path = None if self.trajectory is None else [each[rows] for each in self.trajectory]
        ess = None if self.ess is None else self.ess[rows]
        return Samples(self.x[rows], self.raw[rows], self.nfe * len(self.x) / len(rows), path, ess)


def join(parts: Sequence[Samples]) -> Samples:
    """Concatenates samples that were drawn in parts."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part.x) for part in parts]
    nfe = sum(size * part.nfe for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    paths = None if parts[0].trajectory is None else [part.trajectory for part in parts]
    trajectory = None if paths is None else [torch.cat(moves) for moves in zip(*paths, strict=True)]
    x, raw = torch.cat([part.x for part in parts]), torch.cat([part.raw for part in parts])
    ess = [part.ess for part in parts if part.ess is not None]
    return Samples(x, raw, nfe, trajectory, torch.cat(ess) if ess else None)


class Sampler(ABC):
    """Turns a score function and random numbers into samples.

    Args:
        grid: the times.
        denoise: what happens to the remaining noise.
        initial: where sampling starts.
        clip: [low, high], to which the denoised image is clipped at every evaluation (DDPM: [-1, 1]); null: not at all.
    """

    needs_noise: bool = True
    """Whether the laws p_t must be those of data with noise; correctors alone sample any family of laws."""

    particles: int = 1
    """Samples k with the same k // particles depend on one another, and must be drawn together, under one observation."""

    def __init__(self, grid: TimeGrid, denoise: FinalDenoise, initial: Initial, clip: Sequence[float] | None):
        require(
            clip is None or (len(clip) == 2 and clip[0] < clip[1]),
            f"clip={clip}: need [low, high], as in [-1, 1], or null",
        )
        self.grid, self.denoise, self.initial, self.clip = grid, denoise, initial, clip

    @abstractmethod
    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        """The moves in their order, for a grid of decreasing times (N + 1,)."""

    def moves(self, process: NoiseProcess) -> list[Move]:
        """The moves in their order on the sampler's own grid."""
        return self.plan(self.grid.discretized(process), self.grid(process))

    def view(self, score: ScoreField, times: Tensor) -> ScoreField:
        """The score as the moves see it, on a grid of decreasing times (N + 1,)."""
        score = self.grid.view(score)
        return score if self.clip is None else ClippedScore(score, *self.clip)

    def evaluations(self, process: NoiseProcess) -> int:
        """Network evaluations of a sample; with an adaptive predictor the least number."""
        times, moves = self.grid(process), self.moves(process)
        clean = float(times[-1]) if float(self.grid.discretized(process).sigma(times[-1])) == 0 else None
        counts = (min(move.method.evaluations, 1) if float(move.end) == clean else move.method.evaluations for move in moves)
        return sum(counts) + self.denoise.evaluations

    def check(self, process: NoiseProcess) -> None:
        """Raises `InputError` if the sampler does not fit the process."""
        times, process = self.grid(process), self.grid.discretized(process)
        moves = self.plan(process, times)
        require(
            bool(moves),
            f"grid={type(self.grid).__name__}: has {len(times)} time, and so no step; give more steps, or ProcessTable",
        )
        for method in {move.method for move in moves}:
            method.check(process, times)
        self.denoise.check(float(process.sigma(moves[-1].end)))

    def check_for(self, process: NoiseProcess, levels: Tensor | None) -> None:
        """Checks, and warns if the sampler evaluates the score at other levels than those of training.

        Args:
            process: the noise process.
            levels: the only times at which the score was trained, (L,); None: all times.
        """
        self.check(process)
        if self.grid.learns:  # and keeps to these levels
            return
        times, methods = self.grid(process), {move.method for move in self.moves(process)}
        evaluated = [method.evaluated(process, times) for method in methods if method.evaluations]
        name = f"{type(self).__name__} on {type(self.grid).__name__}"
        warn_between_levels(name, process, levels, torch.cat([times[:0], *evaluated]))

    def __call__(
        self,
        score: ScoreField,
        noise: NoiseStream,
        trajectory: bool = False,
        progress: bool = False,
        observe: Observer | None = None,
        compile: str | None = None,
    ) -> Samples:
        """Draws one sample per random stream.

        Args:
            score: the score function, already conditioned and guided.
            noise: the random streams, which also carry the samples' shape, device and precision.
            trajectory: keep x after every move (memory grows with the number of moves).
            progress: show a progress bar over the moves.
            observe: called after every move.
            compile: the mode of torch.compile for whole steps, of methods that have a `move`; null: none.
        """
        evaluations = score.evaluations
        times, moves, first, kept = plan_of(self, score.process)
        score, states = self.view(score, times), dict(first)
        with score.process.cached_at(kept.times, kept):
            steps = {method: compiled(method, compile).step if compile else method.step for method in states}
            x = self.initial(score.process, noise)
            path = [x] if trajectory else None
            shown = tqdm(moves, "sampling", leave=False, unit="step") if progress else moves
            for i, move in enumerate(shown):
                method, before, state = move.method, x, states[move.method]
                draws = noise if i < len(moves) - 1 else self.denoise.last_noise(noise)
                x, states[method] = steps[method](score, x, move.t, move.s, draws, state)
                if path is not None:
                    path.append(x)
                if observe is not None:
                    observe(score, move, before, x, state)
            result, x, ess = self.finish(score, x, moves[-1].end, noise, states[moves[-1].method])
        return Samples(result, x, (score.evaluations - evaluations) / len(x), path, ess)

    def finish(
        self, score: ScoreField, x: Tensor, t: Tensor, noise: NoiseStream, state: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The samples, those before the final denoise, and effective sample sizes, from x at the last time t, (), and the
        state of the method of the last move.
        """
        return self.denoise.finish(score, x, t), x, None


class PredictorCorrector(Sampler):
    """Predictor-corrector sampling: at every step of the grid one predictor step and `corrector_steps` corrections.

    Algorithm 1 of Song et al. 2021 (2011.13456). DDPM's ancestral sampling is the predictor `Ancestral` alone.

    Args:
        predictor: the numerical method for the reverse SDE or ODE; reverse diffusion by default.
        corrector: a score-based MCMC method; null: none.
        corrector_steps: M, corrections per step.
        predict_first: predict, then correct at the new time (the paper's algorithms); false: correct at the old time, then
            predict (the authors' code).
        grid: the times; 1000 uniform steps by default.
        denoise: what happens to the remaining noise; the noise-free mean of the last move is returned by default.
        initial: where sampling starts; the process's prior by default.
        clip: [low, high], to which the denoised image is clipped at every evaluation (DDPM: [-1, 1]); null: not at all.
        analytic_first_step: the standard deviation of the data, from which the score at the first time follows without the
            network, because x is nearly noise alone (diff-sampler: `afs`); null: the score is the network's.
    """

    def __init__(
        self,
        predictor: Predictor | None = None,
        corrector: Corrector | None = None,
        corrector_steps: int = 1,
        predict_first: bool = True,
        grid: TimeGrid | None = None,
        denoise: FinalDenoise | None = None,
        initial: Initial | None = None,
        clip: Sequence[float] | None = None,
        analytic_first_step: float | None = None,
    ):
        require(corrector_steps >= 1, f"corrector_steps={corrector_steps}: need at least 1; for none, corrector: null")
        require_passes(corrector_steps=corrector_steps)
        super().__init__(grid or Uniform(), denoise or LastMean(), initial or Prior(), clip)
        self.predictor = predictor or ReverseDiffusion()
        self.corrector, self.corrector_steps = corrector, corrector_steps
        self.predict_first, self.analytic_first_step = predict_first, analytic_first_step
        require(
            analytic_first_step is None or (analytic_first_step >= 0 and not self.predictor.adaptive),
            f"analytic_first_step={analytic_first_step}: must be the standard deviation of the data, as in 0.5, or null, as "
            "with a predictor of adaptive steps",
        )

    def view(self, score: ScoreField, times: Tensor) -> ScoreField:
        score = super().view(score, times)
        return score if self.analytic_first_step is None else PriorScore(score, times[0], self.analytic_first_step)

    def evaluations(self, process: NoiseProcess) -> int:
        saved = [] if self.analytic_first_step is None else [m for m in self.moves(process) if m.t >= self.grid(process)[0]]
        counts = (move.method.evaluations if move.end == move.t else min(1, move.method.evaluations) for move in saved)
        return super().evaluations(process) - sum(counts)

    def plan(self, process: NoiseProcess, times: Tensor) -> list[Move]:
        require_passes(moves=(len(times) - 1) * (1 + self.corrector_steps * (self.corrector is not None)))
        noise = process.alpha(times) == 0
        done, from_noise = ((process.sigma(times) == 0) | noise).tolist(), bool(noise[0])  # data, or noise alone
        moves: list[Move] = []
        for i, ((t, s), predict) in enumerate(zip(pairwise(times), moves_of(self.predictor, process, times), strict=True)):
            correct: list[Move] = []
            if self.corrector is not None and not done[i + self.predict_first]:
                beside = times[min(i + 2, len(times) - 1)] if from_noise and i == 0 else t
                correction = Move(self.corrector, s, beside, s) if self.predict_first else Move(self.corrector, t, s, t)
                correct = [correction] * self.corrector_steps
            moves += predict + correct if self.predict_first else correct + predict
        while len(moves) > 1 and not moves[-1].method.evaluations:  # moves without the score are needless at the end
            moves.pop()
        return moves
