"""Langevin steps derived from a trained model: what the command `tune` chooses, in words, as a config and as curves."""

from copy import copy
from math import prod
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_score.callbacks import langevin_health
from lightning_score.callbacks.langevin_health import mean_square, mean_square_at_data
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, require
from lightning_score.interop.base import part
from lightning_score.sampling import AnnealedLangevin, Given, NoiseStream, PredictorCorrector, Sampler
from lightning_score.sampling.corrector import SnrLangevin
from lightning_score.sampling.langevin import levels_of
from lightning_score.sampling.tuning import Moments, TunedLevel, equivalent_gaussian, tuned_ladder, tuned_snrs
from lightning_score.training.model import ScoreModel

SEED = 0
NUMBERS = 2**15
"""Numbers in the examples at which score norms are measured, at least: their relative error is then 0.8 %."""
MOST_EXCESS = 1.5
"""The largest variance ratio for which a lower temperature makes up."""
MEASURED = 24
"""Levels at which score norms are measured, at most."""
Panel = tuple[str, str, dict[str, tuple[list[float], list[float]]]]
"""The title of a panel of the picture, the label of its ordinate, and its curves by name: noise levels and values."""


class Tuned(NamedTuple):
    """What has been chosen: the derivation in words, the config of the sampler, and the panels of the picture."""

    derivation: str
    sampler: dict[str, Any]
    panels: list[Panel]


def choose(model: ScoreModel, data: ScoreData, evaluations: int | None, n: int) -> Tuned:
    """Tunes the sampler of a model: annealed Langevin dynamics, or a predictor-corrector with a Langevin corrector.

    Args:
        model: the model.
        data: the data.
        evaluations: the budget; as many as now by default.
        n: samples that are measured.

    Raises:
        InputError: the sampler has no Langevin steps, or the budget is too small.
    """
    sampler = model.sampler
    budget = sampler.evaluations(model.score_function.process) if evaluations is None else evaluations
    if isinstance(sampler, AnnealedLangevin):
        return tune_ladder(model, data, sampler, budget, n)
    if isinstance(sampler, PredictorCorrector) and isinstance(sampler.corrector, SnrLangevin):
        return tune_corrector(model, data, sampler, sampler.corrector, budget, n)
    fix = "give --model.sampler +AnnealedLangevin, or PredictorCorrector with --model.sampler.corrector Langevin"
    raise InputError(f"model.sampler={type(sampler).__name__}: has no Langevin steps that can be tuned; {fix}")


def tune_ladder(model: ScoreModel, data: ScoreData, sampler: AnnealedLangevin, budget: int, n: int) -> Tuned:
    """Levels, step sizes and steps of annealed Langevin dynamics."""
    process, final = model.score_function.process, sampler.denoise.evaluations
    denoising = ", and the final denoising" if final else ""
    least = f"must be at least {2 + final}: one Langevin step at each of two noise levels{denoising}"
    require(budget >= 2 + final, f"--evaluations {budget}: {least}")
    require(sampler.temperature > 0, "model.sampler.temperature=0: has no law that samples could be tuned to; give 1")
    times = sampler.grid(process)
    levels, trained = levels_of(process, times), model.objective.levels(process)
    if trained is not None:
        levels = trained[(trained >= levels[-1]) & (trained <= levels[0])].flip(0)
    sigmas = process.noise_level(levels).tolist()
    require(len(sigmas) >= 2, f"grid={type(sampler.grid).__name__}: has one noise level, which leaves nothing to choose")
    fit = Norms(model, data, levels, n)
    first = sampler.initial(process, NoiseStream(SEED, range(n), model.shape)) / process.alpha(levels[0])
    shift = mean_square(fit.mean - first.mean(0)) - mean_square(first) / n  # without the error of the mean of n draws
    start = Moments.at_start(fit.gaussian, mean_square(first) / sampler.temperature, max(shift, 0.0))
    by_count, found = tuned_ladder(fit.gaussian, sigmas, trained is not None, start, budget - final, prod(model.shape))
    settings = _settings(found)

    def at(temperature: float) -> AnnealedLangevin:
        return AnnealedLangevin(
            settings["step_size"], settings["steps"], Given(sigmas=[level.sigma for level in found]),
            sampler.denoise, sampler.initial, sampler.clip, temperature,
        )  # fmt: skip

    realized = _realized(model, at(sampler.temperature), fit, n)
    excess = min(max(fmean(realized), 1.0), MOST_EXCESS)
    settings["temperature"] = float(f"{sampler.temperature / excess:.4g}")
    cooled = _realized(model, at(settings["temperature"]), fit, n)
    evaluations = at(settings["temperature"]).evaluations(process)
    text = f"{fit.text()}\n{_ladder_text(by_count, found, realized, cooled, settings['temperature'], evaluations)}"
    return Tuned(text, part("+AnnealedLangevin", **settings), [fit.panel(), *_ladder_panels(found, realized, cooled)])


def _realized(model: ScoreModel, sampler: Sampler, fit: "Norms", n: int) -> list[float]:
    """The variance ratios after the Langevin steps at every level, measured."""
    recorder = langevin_health.LevelRecorder()
    model.draw(range(n), SEED, sampler=sampler, observe=recorder, progress=True)
    recorder.close()
    return [health.variance_ratio for health in langevin_health.compare(recorder, fit.score, fit.noisy)]


class Norms:
    """The score norms of a model, and the Gaussian that has them.

    Args:
        model: the model.
        data: the data.
        levels: times of noise, descending, (L,), of which at most `MEASURED` are measured.
        n: examples, at least.
    """

    def __init__(self, model: ScoreModel, data: ScoreData, levels: Tensor, n: int):
        process = model.score_function.process
        self.score, self.noisy = langevin_health.examples_with_noise(model, data, max(n, NUMBERS // prod(model.shape)), SEED)
        self.mean = self.noisy(torch.zeros(())).mean(0)
        shown = levels[torch.linspace(0, len(levels) - 1, min(MEASURED, len(levels))).round().long()]
        at_data = [mean_square_at_data(self.score, self.noisy, t)[1] for t in shown]
        self.norms = [norm * float(process.sigma(t)) ** 2 for t, norm in zip(shown, at_data, strict=True)]
        self.sigmas = process.noise_level(shown).tolist()
        self.gaussian = equivalent_gaussian(self.sigmas, self.norms)
        self.fitted = [self.gaussian.score_norm(sigma) for sigma in self.sigmas]

    def text(self) -> str:
        """The first two steps of a derivation."""
        every = -(-len(self.sigmas) // 10)
        rows = "\n".join(
            f"   {sigma:>10.4g} {norm:>8.4f} {fitted:>10.4f}"
            for i, (sigma, norm, fitted) in enumerate(zip(self.sigmas, self.norms, self.fitted, strict=True))
            if i % every == 0 or i == len(self.sigmas) - 1
        )
        spread = [f"{share:.0%} of {v**0.5:.2g}" for v, share in zip(*self.gaussian, strict=True) if share >= 0.005]
        return f"""\
1. Score norms E||sigma score||^2/D of the model at training examples with the noise of a level, which are 1 where
   the data have no spread; and those of the Gaussian of step 2:
        sigma    model   Gaussian
{rows}
2. The Gaussian with these norms, as shares of its dimensions and their standard deviations:
   {", ".join(spread)}."""

    def panel(self) -> Panel:
        """The score norms by noise level."""
        curves = {"model": (self.sigmas, self.norms), "Gaussian": (self.sigmas, self.fitted)}
        return "score norms", r"E$||\sigma$ score$||^2/D$", curves


def _settings(found: list[TunedLevel]) -> dict[str, Any]:
    """What `AnnealedLangevin` takes: step sizes at the smallest level, steps, and the grid unless it stays as it is."""
    scale = found[-1].sigma ** 2
    return {
        "step_size": [float(f"{level.u * scale:.5g}") for level in found],
        "steps": [level.steps for level in found],
        "grid": part("Given", sigmas=[float(f"{level.sigma:.8g}") for level in found]),
    }


def _ladder_text(
    by_count: dict[int, float],
    found: list[TunedLevel],
    realized: list[float],
    cooled: list[float],
    temperature: float,
    evaluations: int,
) -> str:
    """The derivation of a ladder from step 3 on."""
    counts = ", ".join(f"{count}: {delta:.3g}" for count, delta in by_count.items())
    scale = found[-1].sigma ** 2
    table = "\n".join(
        f"   {level.sigma:>10.4g} {level.steps:>6} {level.u * scale:>10.4g} {level.u * level.sigma**2:>10.4g} "
        f"{level.variance_ratio:>10.3f} {ratio:>10.3f} {cool:>10.3f}"
        for level, ratio, cool in zip(found, realized, cooled, strict=True)
    )
    steps = sum(level.steps for level in found)
    denoising = " and the final denoising" if evaluations > steps else ""
    return f"""\
3. Levels: the largest deviation after a level with {steps} Langevin steps, as many at each, a Kullback-Leibler
   divergence in which dimensions count by the share of the data in their variance; by the number of levels:
   {counts}. Chosen: L = {len(found)}.
4. Steps T of each level, and the step size with the least deviation: epsilon at the smallest level, and e at this one.
   Variance ratio after the level, E||score||^2 at the samples over that at the data: predicted, measured, and
   measured at the temperature of step 5.
        sigma      T    epsilon          e  predicted   measured     cooled
{table}
5. Temperature: {temperature:g}, so that the steps' excess of variance, {fmean(realized):.4g} on average, is taken off.
6. Cost: {steps} Langevin steps{denoising}, {evaluations} evaluations per sample."""


def _ladder_panels(found: list[TunedLevel], realized: list[float], cooled: list[float]) -> list[Panel]:
    sigmas = [level.sigma for level in found]
    ratios = {"predicted": [level.variance_ratio for level in found], "measured": realized, "at the temperature": cooled}
    return [
        ("steps of each level", "$T$", {"": (sigmas, [float(level.steps) for level in found])}),
        ("step sizes", r"$e/\sigma^2$", {"": (sigmas, [level.u for level in found])}),
        ("variance ratio after the level", "", {name: (sigmas, values) for name, values in ratios.items()}),
    ]


def tune_corrector(
    model: ScoreModel, data: ScoreData, sampler: PredictorCorrector, corrector: SnrLangevin, budget: int, n: int
) -> Tuned:
    """The signal-to-noise ratio of a Langevin corrector at every level, and its number of corrections."""
    process = model.score_function.process
    moves = sampler.plan(process, sampler.grid(process))
    corrections = sum(move.method is corrector for move in moves) // sampler.corrector_steps
    others = sampler.evaluations(process) - corrections * sampler.corrector_steps
    steps = (budget - others) // corrections
    least = f"must be at least {others + corrections}, with one correction at each of {corrections} levels"
    require(steps >= 1, f"--evaluations {budget}: {least}; or give the grid fewer steps")
    times = sampler.grid(process)
    fit, planned = Norms(model, data, levels_of(process, times), n), _with(sampler, corrector, steps)
    start = mean_square(sampler.initial(process, NoiseStream(SEED, range(n), model.shape)))
    found = tuned_snrs(fit.gaussian, process, planned.plan(process, times), corrector, start)
    pairs = [(float(f"{level.sigma:.6g}"), float(f"{level.snr:.4g}")) for level in found]
    realized = _realized(model, _with(sampler, type(corrector)(pairs), steps), fit, n)
    rows = "\n".join(
        f"   {level.sigma:>10.4g} {level.snr:>8.4f} {level.before:>10.3g} {level.after:>10.3g} {ratio:>10.3f}"
        for level, ratio in zip(found, realized, strict=True)
    )
    text = f"""\
{fit.text()}
3. Budget: {others} evaluations are not the corrector's; with {steps} at each of {corrections} levels there are
   {others + steps * corrections} per sample.
4. Signal-to-noise ratio at each level, which reduces the deviation of the sampler's law of that Gaussian, a
   Kullback-Leibler divergence in which dimensions count by the share of the data in their variance, times a factor for
   the least deviation at the end. Measured: E||score||^2 at the samples over that at the data.
        sigma      snr     before      after   measured
{rows}"""
    sigmas = [level.sigma for level in found]
    deviations = {"before the corrections": [level.before for level in found], "after": [level.after for level in found]}
    panels: list[Panel] = [
        fit.panel(),
        ("signal-to-noise ratio", "snr", {"": (sigmas, [level.snr for level in found])}),
        ("deviation of the Gaussian", "", {name: (sigmas, values) for name, values in deviations.items()}),
        ("variance ratio after the corrections", "", {"measured": (sigmas, realized)}),
    ]
    chosen = {"corrector_steps": steps, "corrector": {"init_args": {"snr": [list(pair) for pair in pairs]}}}
    return Tuned(text, {"init_args": chosen}, panels)


def _with(sampler: PredictorCorrector, corrector: SnrLangevin, steps: int) -> PredictorCorrector:
    """The sampler with another corrector, and as many corrections at each level."""
    changed = copy(sampler)
    changed.corrector, changed.corrector_steps = corrector, steps
    return changed
