"""Predictors: their orders of convergence, and the same numbers as their peers."""

import math

import numpy as np
import pytest
import torch
from conftest import PREDICTORS, PROCESSES, MixtureScore
from laws import Given, weak_error

from lightning_score.process import VE, BetaTable, SigmaTable
from lightning_score.sampling import (
    DDIM,
    Ancestral,
    ReverseDiffusion,
)

ORDER_PROCESSES = [p() if p not in (SigmaTable, BetaTable, VE) else None for p in PROCESSES]
ORDER_PROCESSES = [p for p in ORDER_PROCESSES if p is not None] + [
    VE(0.05, 5.0),
    SigmaTable(0.2, 2.0, 5),
    BetaTable(0.05, 0.3, 5),
]


@pytest.mark.parametrize("process", ORDER_PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", [p for p in PREDICTORS if p().calls], ids=lambda p: p.__name__)
def test_every_predictor_converges_at_its_declared_order(kind, process):
    t_min = 0.2  # an entry of the tables, on whose intervals every step lies inside
    errors = [weak_error(kind(), process, steps, t_min) for steps in (200, 400, 800)]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert orders[1] == pytest.approx(kind.order, abs=0.25), (errors, orders)


def test_ddim_with_eta_one_is_ancestral(noise_process):
    score = MixtureScore(noise_process)
    x, z = torch.randn(2, 20, 2, dtype=torch.float64)
    t, s = torch.tensor(0.63, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    ddim, _ = DDIM(1.0).step(score, x, t, s, Given(z), None)
    ancestral, _ = Ancestral().step(score, x, t, s, Given(z), None)
    torch.testing.assert_close(ddim, ancestral)


class TestPeers:
    """The same numbers as diffusers, given the same noise."""

    def setup_method(self):
        torch.manual_seed(0)
        self.x, self.z, self.output = torch.randn(3, 4, 3, 8, 8)
        self.process = BetaTable()

    def score(self):
        from lightning_score.parametrization import Noise
        from lightning_score.score import ScoreFunction

        class Net(torch.nn.Module):
            def forward(_, x, label, cond=None):
                return self.output

        return ScoreFunction(Net(), self.process, Noise())

    @pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("clip", [True, False])
    def test_ddpm(self, monkeypatch, variance, clip):
        from diffusers import DDPMScheduler
        from diffusers.schedulers import scheduling_ddpm

        from lightning_score.score import ClippedScore

        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: self.z)
        peer = DDPMScheduler(variance_type=variance, clip_sample=clip)
        peer.betas = self.process.betas  # theirs cancel in single precision
        peer.alphas_cumprod = torch.cumprod(1 - peer.betas, 0)
        score = ClippedScore(self.score(), -1, 1) if clip else self.score()
        times = self.process.table_times()
        for i in (999, 500, 1):
            expected = peer.step(self.output, i, self.x).prev_sample
            ours, _ = Ancestral(variance == "fixed_large").step(score, self.x, times[i], times[i - 1], Given(self.z), None)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_ddim(self, eta):
        from diffusers import DDIMScheduler

        peer = DDIMScheduler(clip_sample=False)
        peer.set_timesteps(50)
        times = self.process.table_times()
        expected = peer.step(self.output, 500, self.x, eta=eta, variance_noise=self.z if eta else None).prev_sample
        ours, _ = DDIM(eta).step(self.score(), self.x, times[500], times[480], Given(self.z), None)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

    def test_reverse_diffusion_is_line_three_of_algorithm_three(self):
        beta = np.linspace(1e-4, 0.02, 1000)[700]
        times, score = self.process.table_times(), self.score()
        ours, _ = ReverseDiffusion().step(score, self.x, times[700], times[699], Given(self.z), None)
        expected = (2 - math.sqrt(1 - beta)) * self.x + beta * score(self.x, times[700]) + math.sqrt(beta) * self.z
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
