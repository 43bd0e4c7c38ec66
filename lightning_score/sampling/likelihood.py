"""Likelihoods by the probability-flow ODE, in nats and in bits per dimension.

Chen et al. 2018 (1806.07366), theorem 1; Song et al. 2021 (2011.13456), section 4.3 and appendix D.2.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_score.errors import require, require_passes
from lightning_score.process import NoiseProcess
from lightning_score.sampling.flow import DormandPrince, NoDraws, evaluating
from lightning_score.sampling.from_noise import FROM_NOISE
from lightning_score.sampling.noise import NoiseStream
from lightning_score.sampling.prior import warn_of_prior
from lightning_score.score.function import Conditioned, ScoreField
from lightning_score.score.trace import Hutchinson, Trace
from lightning_score.tensors import broadcast_to


class LogLikelihood(NamedTuple):
    """`value`, log p at t_min in nats (B,), float64; `latent`, the end of the flow at t = 1 (B, ...); `nfe` per example."""

    value: Tensor
    latent: Tensor
    nfe: float


def log_prior(process: NoiseProcess, latent: Tensor) -> Tensor:
    """log N(latent; 0, sigma(1)^2 I) in nats, float64 (B,)."""
    z = latent.flatten(1).double()
    variance = process.sigma(z.new_ones(())) ** 2
    return -(z.square().sum(1) / variance + z.shape[1] * (2 * math.pi * variance).log()) / 2


def log_likelihood(
    score: ScoreField,
    x: Tensor,
    noise: NoiseStream | None = None,
    trace: Trace | None = None,
    solver: DormandPrince | None = None,
    t_min: float | None = None,
    prior: Callable[[NoiseProcess, Tensor], Tensor] | None = None,
) -> LogLikelihood:
    """log p(x) at t_min, by the flow d(x/alpha) = noise d(sigma/alpha), noise = -sigma score.

    log p(x) = log p_1(x_1) + D log(alpha_1/alpha_t) + int tr(d noise/d(x/alpha)) d(sigma/alpha), from t = t_min to 1. If
    alpha(1) = 0, it goes to sigma/alpha = 1000, and from there to 1 in one step; for data of variance v that leaves an error
    of about 1e-6 v (|z|^2 - D)/2 nats, z = x_1/sigma(1).

    Args:
        score: the score function; for a conditional one wrap it in `Conditioned`.
        x: examples (B, ...) of p at t_min.
        noise: random streams of the vectors of `trace`; stream k of seed 0 for row k by default.
        trace: how the trace is computed; with one `Rademacher` vector, the same along the whole path, by default.
        solver: the integrator, with separate errors of x/alpha and of nats per dimension; tolerances 1e-5 by default.
        t_min: smallest time; that of the process by default.
        prior: log density at t = 1 in nats (B,); `log_prior`, that of `process.prior`, by default, with a warning if it
            misses the law of x by nats.

    Raises:
        InputError: there is no noise at t_min.
    """
    process, start = score.process, score.process.t_min if t_min is None else t_min
    noise = noise or NoiseStream(0, range(len(x)), x.shape[1:], x.device, x.dtype)
    ends = torch.tensor([start, 1.0], dtype=torch.float64, device=x.device)
    require(
        0 <= start < 1 and float(process.sigma(ends[0])) > 0,
        f"t_min={start}: must lie in [0, 1) and be a time at which {type(process).__name__} has noise, as 1.0e-3",
    )
    if prior is None:
        warn_of_prior(process, x)
    with torch.inference_mode(False), torch.no_grad(), evaluating(score):
        x = x.clone()
        trace = trace or Hutchinson()
        vectors = [v.flatten(1).clone() for v in trace.vectors(x, noise)]
        before, d = score.evaluations, x[0].numel()

        def slope(state: Tensor, level: Tensor) -> Tensor:
            time = process.time_of(level)

            def predict(y: Tensor) -> Tensor:
                return score.noise(broadcast_to(process.alpha(time), x) * y.view_as(x), time).flatten(1)

            predicted, pullback, *_ = torch.func.vjp(predict, state[:, :d].contiguous())
            divergence = trace(lambda v: pullback(v)[0], vectors)
            return torch.cat([predicted, divergence.unsqueeze(1) / d], 1)

        near = process.with_signal(ends)
        first_level, last_level = process.noise_level(near)
        y = torch.cat([(x / broadcast_to(process.alpha(ends[0]), x)).flatten(1), x.new_zeros(len(x), 1)], 1)
        y = (solver or DormandPrince())(slope, y, first_level, last_level, parts=[d, 1])
        latent = broadcast_to(process.alpha(near[1]), x) * y[:, :d].view_as(x)
        latent, last = _to_noise(score, latent, near[1], ends[1], trace, vectors)
        gain = y[:, d].double() + process.log_alpha(near[1]) - process.log_alpha(ends[0]) + last
        return LogLikelihood((prior or log_prior)(process, latent) + d * gain, latent, (score.evaluations - before) / len(x))


def _to_noise(
    score: ScoreField, x: Tensor, s: Tensor, t: Tensor, trace: Trace, vectors: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Noise alone at t from x (B, ...) at s, the last time with signal, by `FromNoise`, and log |d noise/d x| per dimension,
    (B,), to first order in alpha_s/sigma_s; x itself if s is t.
    """
    process, d = score.process, x[0].numel()
    if s == t:
        return x, x.new_zeros((), dtype=torch.float64)
    latent, _ = FROM_NOISE.step(score, x, s, t, NoDraws(), None)
    scale, alpha = process.sigma(s) / process.sigma(t), process.alpha(s)
    _, pullback, *_ = torch.func.vjp(lambda z: score.denoised(z.view_as(x), t).flatten(1), latent.flatten(1))
    return latent, -scale.log() - alpha / scale * trace(lambda v: pullback(v)[0], vectors).double() / d


Likelihood = Callable[[ScoreField, Tensor, NoiseStream], LogLikelihood]
"""log p of examples (B, ...), as `log_likelihood`."""


class Dequantization:
    """Gray levels as densities: x is uniform within the bin of its level, and log2 of the bins per unit of x is added.

    If the data are dequantized, level v has the bin low + (high - low) [v, v + 1)/levels; otherwise the model was trained on
    low + (high - low) v/(levels - 1), the middle of a bin of width (high - low)/(levels - 1). The mean of -log2 p + offset
    over the noise is never below -log2 P(v), per dimension (Theis, van den Oord and Bethge 2016, 1511.01844, section 3.1).

    Args:
        levels: number of gray levels, at least 2.
        data_range: lowest and highest value in the data of the model.
        dequantized: whether the model is trained on dequantized data.
    """

    def __init__(self, levels: int = 256, data_range: Sequence[float] = (0.0, 1.0), dequantized: bool = True):
        require(levels >= 2, f"levels={levels}: need at least 2 gray levels, as in 256")
        require(
            len(data_range) == 2 and data_range[0] < data_range[1],
            f"data_range={list(data_range)}: must be two increasing numbers, as in [0, 1] or [-1, 1]",
        )
        self.levels, self.low, self.dequantized = levels, data_range[0], dequantized
        self.width = (data_range[1] - data_range[0]) / (levels if dequantized else levels - 1)

    @property
    def offset(self) -> float:
        """log2 of the number of bins per unit of x: 8 for 256 levels in [0, 1], 7 in [-1, 1]."""
        return -math.log2(self.width)

    def level(self, x: Tensor) -> Tensor:
        """The gray level of x, 0 to levels - 1, for x anywhere in the bin of the level."""
        position = (x - self.low) / self.width
        return (position.floor() if self.dequantized else position.round()).clamp(0, self.levels - 1)

    def __call__(self, x: Tensor, noise: NoiseStream) -> Tensor:
        """x with fresh uniform noise within the bin of its level."""
        return self.low + self.width * (self.level(x) + noise.uniform() - (0.0 if self.dequantized else 0.5))


class MeanLikelihood(NamedTuple):
    """A mean over examples and draws of noise, of bits per dimension or of nats, with its uncertainty.

    Fields: mean, error (the mean's standard error over the examples), spread (standard deviation over the noise draws of the
    mean over the examples; NaN for one draw), n (examples), draws.
    """

    mean: float
    error: float
    spread: float
    n: int
    draws: int

    @classmethod
    def of(cls, values: Tensor) -> "MeanLikelihood":
        """From the values of every draw and example, (draws, n)."""
        draws, n = values.shape
        error = float(values.mean(0).std()) / math.sqrt(n) if n > 1 else math.nan
        spread = float(values.mean(1).std()) if draws > 1 else math.nan
        return cls(float(values.mean()), error, spread, n, draws)


def example_bits(
    score: ScoreField,
    x: Tensor,
    noise: NoiseStream,
    dequantization: Dequantization,
    likelihood: Likelihood = log_likelihood,
) -> Tensor:
    """-log2 p(x)/D + offset of one draw of the noise, float64 (B,); each call with the same streams draws anew."""
    value = likelihood(score, dequantization(x, noise), noise).value
    return -value / (math.log(2) * x[0].numel()) + dequantization.offset


def bits_per_dim(
    score: ScoreField,
    x: Tensor,
    dequantization: Dequantization,
    draws: int = 2,
    seed: int = 0,
    cond: Tensor | None = None,
    batch_size: int = 256,
    likelihood: Likelihood = log_likelihood,
) -> MeanLikelihood:
    """Bits per dimension of images, a bound on those of the model's discrete law.

    Args:
        score: the score function.
        x: images in the data range of the model (n, ...), on the model's device.
        dequantization: where the gray levels lie in the data range.
        draws: draws of dequantization noise and trace vectors per example.
        seed: seed of both; example k has the same noise in every batch.
        cond: conditions (n, ...) for a conditional score; null: none.
        batch_size: examples at once; it changes the memory used, not the result.
        likelihood: log p, as `functools.partial(log_likelihood, trace=ExactTrace())`.
    """
    require(draws >= 1, f"draws={draws}: need at least 1; the spread over draws needs 2")
    require_passes(draws=draws)
    require(batch_size >= 1, f"batch_size={batch_size}: must be at least 1")
    bits = []
    for rows in torch.arange(len(x)).split(batch_size):
        noise = NoiseStream(seed, rows.tolist(), x.shape[1:], x.device, x.dtype)
        conditioned = score if cond is None else Conditioned(score, cond[rows.to(cond.device)])
        images = x[rows.to(x.device)]
        drawn = [example_bits(conditioned, images, noise, dequantization, likelihood) for _ in range(draws)]
        bits.append(torch.stack(drawn))
    return MeanLikelihood.of(torch.cat(bits, 1))
