"""Measures samples given simulated observations of held-out examples against the posterior, in `test`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from lightning_score.callbacks.ensemble_pictures import SHOWN, calibration_figure, ensemble_picture
from lightning_score.callbacks.ensembles import EnsembleCallback, Truths, as_examples
from lightning_score.callbacks.evaluate import Evaluate
from lightning_score.callbacks.pictures import figure_picture, publish
from lightning_score.data import ScoreData
from lightning_score.errors import require
from lightning_score.guidance import Guidance
from lightning_score.guidance.observed import only_observing
from lightning_score.metrics.calibration import distances_from, squared_z
from lightning_score.metrics.ensembles import EnsembleScores, PosteriorScores, exact_distances, image_scores
from lightning_score.observations import GaussianNoise, LinearOperator, Observation, ObservationNoise, Operator
from lightning_score.runs.records import settings_of
from lightning_score.seeds import counted_seed
from lightning_score.training.model import ScoreModel

REFERENCES = 100
"""Reference points of TARP, ..."""
DIRECTIONS = 64
"""... directions of z-scores ..."""
EXACT = 256
"""... and samples of the exact posterior besides those that stand for a perfect model, of each observation."""


class Posterior(EnsembleCallback):
    """Measures whether samples given an observation follow the posterior, in `test`: held-out examples are observed with the
    operator and the noise of the guidance, and their samples compared with them.

    For calibrated samples, truth and samples have the same law. It logs, with the prefix `test/`: `rank_deviation`, of the
    ranks of simulation-based calibration, `likelihood_rank_deviation`, of those of the likelihood of the observation, and
    `tarp_deviation`, the largest deviation of TARP's coverage, each with the mean `_floor` and the 95 % `_limit` of a
    calibrated model; `interval_50` and `interval_90`, the coverage of central intervals; `z_score`, root mean square, and
    `spread_skill`, 1 if calibrated; `crps` and `crps_skill`; `residual_over_noise`, the root mean square of A sample - y in
    standard deviations of the noise, 1 if calibrated (of exact observations `residual`, in those of the data, 0 at best);
    `rmse`, and for images `psnr` and `ssim`, of the mean of the samples; `posterior_distance`, the sliced Wasserstein
    distance from the exact posterior where it is known. Each has its standard error over observations, `_error`. It also
    logs `nfe` and `sampling_seconds`. In `fast_dev_run` it draws few samples of two observations.

    Args:
        observations: number of held-out examples, chosen at random.
        samples: samples of each observation; a multiple of the sampler's particles.
        seed: seed of examples, noise and samples.
        batch_size: samples drawn at once on each device; it changes the memory needed, not the samples.
        noise_std: standard deviation of the noise that is added; null: the noise of the guidance.

    Raises:
        InputError: a number is out of range; the guidance is not one by observations, or its noise is unknown.
    """

    names = "observations", "samples"
    logs_cost = True

    def __init__(
        self,
        observations: int = 64,
        samples: int = 16,
        seed: int = 3,
        batch_size: int = 1024,
        noise_std: float | None = None,
    ):
        require(observations >= 10, f"observations={observations}: must be at least 10 for errors and bands")
        require(samples >= 4, f"samples={samples}: must be at least 4 of each observation, as 16")
        super().__init__(observations, samples, seed, batch_size)
        self.noise = None if noise_std is None else GaussianNoise(noise_std)

    def alone(self, evaluate: Evaluate, callbacks: Sequence[Any]) -> list[Any]:
        """The callbacks with this one as the only measure of samples."""
        evaluate.features, evaluate.distances, evaluate.metric = [], [], None
        return [*(each for each in callbacks if not isinstance(each, EnsembleCallback)), self]

    def check(self, data: ScoreData) -> None:
        super().check(data)
        name = type(data).__name__
        require(not data.missing, f"--posterior: {name} may have missing entries, which cannot be observed; give other data")
        held_out = len(data.splits.held_out.x)
        require(held_out >= self.conditions, f"observations={self.conditions}: there are only {held_out} held-out examples")

    def check_model(self, model: ScoreModel) -> None:
        self._parts(model)
        super().check_model(model)

    def _parts(self, model: ScoreModel) -> tuple[Operator, ObservationNoise]:
        """The operator of the model's guidance, and the noise of the simulation.

        Raises:
            InputError: there is not one guidance by observations, or its noise is unknown.
        """
        found = only_observing(model.guidance, "--posterior")
        operator, noise = found.operator, self.noise or cast(ObservationNoise, found.noise)
        require(
            not isinstance(noise, GaussianNoise) or noise.std is not None,
            f"--posterior: the noise of guidance={type(found).__name__} is unknown; give that of the simulation, "
            "--posterior.noise_std",
        )
        return operator, noise

    def prepared(self, data: ScoreData, model: ScoreModel, truths: Truths) -> Truths:
        """With simulated observations, and the noise-free ones of other examples."""
        operator, noise = self._parts(model)
        generator = torch.Generator().manual_seed(counted_seed(self.seed))  # the same on all processes
        self._observed = Observation(operator, noise, noise.sample(operator.apply(truths.x), generator))
        self._of_others = operator.apply(truths.others)
        self.subject = f", {_brief(operator)}, {_brief(noise)}"
        return truths._replace(y=self._observed.y)

    @contextmanager
    def drawing(self, model: ScoreModel, truths: Truths, members: int) -> Iterator[None]:
        guidance = cast(Guidance, model.guidance)
        try:
            model.guidance = guidance.observe_with(truths.y, members)
            yield
        finally:
            model.guidance = guidance

    def scores(self, data: ScoreData, truths: Truths, members: int, device: torch.device) -> EnsembleScores:
        sample = torch.zeros(members, *data.shape)
        numbers = {**self._image_scores(data, sample, truths.truth[0]), **self._distances(data, 0, sample)}
        ranks = ("distances",) if self._exact else ("distances", "likelihood")
        names = ("squared_z", "squared_residual", *numbers)
        return PosteriorScores(len(truths.x), members, self.seed, device, names, ranks)

    def further(
        self, data: ScoreData, truths: Truths, scores: EnsembleScores, k: int, samples: Tensor
    ) -> Mapping[str, Tensor | float]:
        operator, noise, y = self._observed
        y, x, truth = y[k : k + 1].to(samples), samples.flatten(1), truths.x[k].to(samples)
        observed = operator.apply(torch.cat([truth[None], samples]))
        variance = truths.spread**2 if self._exact else noise.variance(y, observed[1:])
        found: dict[str, Tensor | float] = {
            "squared_z": squared_z(x, truth.flatten(), self._directions(x)),
            "squared_residual": ((y - observed[1:]).square() / variance).double().mean(),
            "distances": scores.rank_shares(k, *distances_from(self._references(truths, y), x, truth.flatten())),
            **self._image_scores(data, samples, truths.truth[k]),
            **self._distances(data, k, samples),
        }
        if not self._exact:
            likelihood = noise.log_prob(y.expand_as(observed), observed)
            found["likelihood"] = scores.rank_shares(k, likelihood[1:, None], likelihood[:1])
        return found

    @property
    def _exact(self) -> bool:
        """Whether observations have no noise, and so no density."""
        return isinstance(self._observed.noise, GaussianNoise) and self._observed.noise.std == 0

    def _directions(self, x: Tensor) -> Tensor:
        drawn = torch.randn(DIRECTIONS, x.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return F.normalize(drawn).to(x)

    def _references(self, truths: Truths, y: Tensor) -> Tensor:
        """Training examples, of each of several groups that whose noise-free observation is the nearest to y (1, ...)."""
        apart = (self._of_others.to(y) - y).flatten(1).square().sum(1)
        groups = torch.arange(len(apart)).chunk(REFERENCES)
        rows = [int(group[apart[group].argmin()]) for group in groups]
        return truths.others[rows].flatten(1).to(y)

    def _image_scores(self, data: ScoreData, samples: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Of the mean of the samples, in the form of stored images."""
        if data.data_range is None or len(data.shape) != 3:
            return {}
        low, high = (data.to_reference(torch.full((1, *data.shape), end)).double().mean() for end in data.data_range)
        mean = data.to_reference(samples).double().mean(0)
        return image_scores(mean, truth.to(mean), float(high - low))

    def _distances(self, data: ScoreData, k: int, samples: Tensor) -> dict[str, float]:
        operator, noise, y = self._observed
        draw = data.posterior(Observation(operator, noise, y[k : k + 1]))
        if draw is None:
            return {}
        exact = draw(EXACT + len(samples), torch.Generator().manual_seed(counted_seed(self.seed, k)))
        return exact_distances(samples.flatten(1).cpu(), exact.flatten(1))

    def publish(self, trainer: Trainer, data: ScoreData, truths: Truths, scores: EnsembleScores, shown: Tensor) -> None:
        operator, found, step = self._observed.operator, scores.found(), f"step {trainer.global_step}, "
        histograms = {"the truth": scores.histogram()}
        if not self._exact:
            histograms["the likelihood"] = scores.histogram("likelihood")
        figure = calibration_figure(histograms, scores.coverage("distances"))
        deviation, score, rmse = (found[name].estimate.value for name in ("tarp_deviation", "z_score", "rmse"))
        publish(trainer, "coverage", figure_picture(figure), f"{step}TARP deviation {deviation:.3f}")
        given = as_examples(data, operator, truths.y[:SHOWN]) if isinstance(operator, LinearOperator) else None
        picture = ensemble_picture(data, truths.truth, given, shown)
        publish(trainer, "posterior", picture, f"{step}z-score {score:.2f}, RMSE {rmse:.3g}")


def _brief(part: Any) -> str:
    """A class and its arguments, as far as they are its attributes."""
    settings, names = settings_of(part), signature(type(part)).parameters
    return f"{type(part).__name__}({', '.join(f'{name}={settings[name]}' for name in names if name in settings)})"
