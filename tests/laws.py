"""The laws that samplers are held to. With a Gaussian's exact score most moves are affine in x and z, so that the moments
of the samples are known without drawing any.
"""

import math

import torch
from conftest import MixtureScore

from lightning_score.data import Mixture
from lightning_score.sampling import (
    PredictorCorrector,
    Uniform,
)

MEAN, STD = 0.5, 0.4


class Given:
    """Hands out the same noise at every step."""

    def __init__(self, z):
        self.z = z

    def normal(self):
        return self.z


def gaussian(process, mean=MEAN, std=STD):
    return MixtureScore(process, Mixture([[mean]], [std]))


def affine(step):
    """(A, B, C) of a step x -> A x + B + C z, in one dimension."""
    x, z = (torch.tensor(v, dtype=torch.float64).unsqueeze(1) for v in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    b, a_plus_b, c_plus_b = step(x, Given(z)).flatten().tolist()
    return a_plus_b - b, b, c_plus_b - b


def moments(score, stages, state, mean, variance):
    for method, t, s, _ in stages:
        a, b, c = affine(lambda x, z, m=method, t=t, s=s: m.step(score, x, t, s, z, state[m])[0])
        mean, variance = a * mean + b, a * a * variance + c * c
    return mean, variance


def weak_error(predictor, process, steps, t_min):
    """Error of the mean and the standard deviation at t_min, from the exact law at t = 1."""
    score, times = gaussian(process), Uniform(steps, t_min)(process)
    stages = PredictorCorrector(predictor, grid=Uniform(steps, t_min)).plan(process, times)
    state = {predictor: predictor.init(process, times)}

    def law(t):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * MEAN, alpha**2 * STD**2 + sigma**2

    mean, variance = moments(score, stages, state, *law(times[0]))
    exact_mean, exact_variance = law(times[-1])
    return abs(mean - exact_mean) + abs(math.sqrt(variance) - math.sqrt(exact_variance))
