"""The same numbers as our peers', in the same units and given the same noise: diffusers, score SDE and EDM."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import QuickNoise
from laws import Given

from lightning_score.process import VE, VP, BetaTable, SigmaTable, SubVP
from lightning_score.sampling import (
    DDIM,
    IPNDM,
    AdamsBashforth,
    Ancestral,
    BatchLangevin,
    DPMSolver,
    DPMSolver2M,
    DPMSolver3M,
    EulerMaruyama,
    Heun,
    Karras,
    PredictorCorrector,
    Prior,
    ProcessTable,
    ReverseDiffusion,
    SASolver,
    ScoreSDESteps,
    SDEDPMSolver2M,
    StochasticHeun,
    Uniform,
    UniPC,
)
from lightning_score.score.function import ClippedScore, ScoreField, ScoreFunction
from lightning_score.score.parametrization import EDM
from lightning_score.tensors import broadcast_to


class Curved(ScoreField):
    """A score that is not linear in x, of data of about unit variance."""

    evaluations = 0

    def forward(self, x, t, cond=None):
        self.evaluations += len(x)
        variance = broadcast_to(self.process.alpha(t) ** 2 + self.process.sigma(t) ** 2, x)
        return -(x + 0.3 * (2 * x).sin()) / variance


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, check_dtype=False)


def walk(predictor, score, times, x, noise):
    """All steps of a predictor from x, with one draw of `noise` a step."""
    state = predictor.init(score.process, times)
    for (t, s), z in zip(pairwise(times), noise, strict=True):
        x, state = predictor.step(score, x, t, s, Given(z), state)
    return x


class TestDiffusers:
    """Whole chains on the even parts of DDPM's table, from the largest entry to clean data."""

    steps = 10

    def setup_method(self):
        torch.manual_seed(0)
        self.x, *self.noise = torch.randn(1 + self.steps, 4, 3, 8, 8)
        self.process = BetaTable()
        self.score = Curved(self.process)

    def output(self, x, index):
        """What the network of DDPM, which predicts the noise, gives for the peer's index 0 to 999."""
        return self.score.noise(x, torch.tensor((float(index) + 1) / 1000, dtype=torch.float64))

    def ours(self, predictor):
        return walk(predictor, self.score, ProcessTable(self.steps)(self.process), self.x, self.noise)

    def peer(self, kind, **settings):
        """Theirs, with the cumulative products in double precision: in single precision they differ by more than 1e-5."""
        scheduler = kind(timestep_spacing="trailing", **settings)
        scheduler.betas = self.process.betas
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas, 0)
        scheduler.set_timesteps(self.steps)
        return scheduler

    @pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
    @pytest.mark.parametrize("clip", [True, False])
    def test_ddpm(self, monkeypatch, variance, clip):
        from diffusers import DDPMScheduler
        from diffusers.schedulers import scheduling_ddpm

        z = self.noise[0]
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: z)
        peer = DDPMScheduler(variance_type=variance, clip_sample=clip)
        peer.betas = self.process.betas
        peer.alphas_cumprod = torch.cumprod(1 - peer.betas, 0)
        score = ClippedScore(self.score, -1, 1) if clip else self.score
        times = self.process.table_times()
        for i in (999, 500, 1):
            expected = peer.step(self.output(self.x, i), i, self.x).prev_sample
            ours, _ = Ancestral(variance == "fixed_large").step(score, self.x, times[i], times[i - 1], Given(z), None)
            close(ours, expected)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_ddim(self, eta):
        from diffusers import DDIMScheduler

        peer, x = self.peer(DDIMScheduler, clip_sample=False), self.x
        for t, z in zip(peer.timesteps, self.noise, strict=True):
            x = peer.step(self.output(x, t), t, x, eta=eta, variance_noise=z if eta else None).prev_sample
        close(self.ours(DDIM(eta)), x)

    @pytest.mark.parametrize(
        ("predictor", "algorithm"), [(DPMSolver2M(), "dpmsolver++"), (SDEDPMSolver2M(), "sde-dpmsolver++")]
    )
    def test_dpm_solver(self, predictor, algorithm):
        from diffusers import DPMSolverMultistepScheduler

        peer, x = self.peer(DPMSolverMultistepScheduler, algorithm_type=algorithm, final_sigmas_type="zero"), self.x
        for t, z in zip(peer.timesteps, self.noise, strict=True):
            x = peer.step(self.output(x, t), t, x, variance_noise=z).prev_sample
        close(self.ours(predictor), x)

    @pytest.mark.parametrize(
        ("predictor", "name", "settings"),
        [
            (DPMSolver3M(), "DPMSolverMultistep", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
            *((AdamsBashforth("log_sigma", order), "DEISMultistep", {"solver_order": order}) for order in (2, 3)),
            *((UniPC(order), "UniPCMultistep", {"solver_order": order, "solver_type": "bh2"}) for order in (1, 2, 3)),
            (UniPC(3, False), "UniPCMultistep", {"solver_order": 3, "disable_corrector": list(range(10))}),
            *(
                (SASolver(*orders, 1.0, 0.1, 9.0), "SASolver", {"predictor_order": orders[0], "corrector_order": orders[1]})
                for orders in ((1, 1), (2, 2), (2, 3), (3, 2), (3, 4))
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_multistep(self, monkeypatch, predictor, name, settings):
        """On the even entries and then the smallest, in double precision: theirs end there, and there at full order."""
        import diffusers
        from diffusers.schedulers import scheduling_sasolver

        draws = iter(self.noise)
        monkeypatch.setattr(scheduling_sasolver, "randn_tensor", lambda *a, **k: next(draws))
        times = torch.cat([ProcessTable(self.steps)(self.process)[:-1], self.process.table_times()[:1]])
        level = self.process.noise_level(times)
        if name == "SASolver":
            settings |= {"tau_func": lambda t: 1.0 if 0.1 <= level[:-1][peer.timesteps == t] <= 9 else 0.0}
        peer = getattr(diffusers, f"{name}Scheduler")(timestep_spacing="trailing", lower_order_final=False, **settings)
        peer.set_timesteps(self.steps)
        peer.sigmas, x = level, self.x.double()
        for t in peer.timesteps:
            x = peer.step(self.output(x, t), t, x).prev_sample
        close(walk(predictor, self.score, times, self.x.double(), self.noise), x)

    def test_ipndm(self):
        """It takes the velocity of a process with alpha^2 + sigma^2 = 1."""
        from diffusers import IPNDMScheduler

        times = ProcessTable(self.steps)(self.process)[:-1]
        peer, x = IPNDMScheduler(), self.x.double()
        peer.set_timesteps(self.steps)
        peer.alphas, peer.betas = self.process.alpha(times), self.process.sigma(times)
        for i, t in enumerate(times[:-1]):
            velocity = peer.alphas[i] * self.score.noise(x, t) - peer.betas[i] * self.score.denoised(x, t)
            x = peer.step(velocity, peer.timesteps[i], x).prev_sample
        close(walk(IPNDM(), self.score, times, self.x.double(), self.noise[1:]), x)

    @pytest.mark.parametrize(("predictor", "name"), [(Heun(), "HeunDiscrete"), (DDIM(), "EulerDiscrete")])
    def test_heun_and_euler_in_sigma(self, predictor, name):
        """They work on x/alpha."""
        import diffusers

        peer = self.peer(getattr(diffusers, f"{name}Scheduler"))
        x = self.x / self.process.alpha(torch.ones(()))
        for t in peer.timesteps:
            x = peer.step(self.output(peer.scale_model_input(x, t), t), t, x).prev_sample
        close(self.ours(predictor), x)

    def test_edm_euler(self):
        """Their sigmas are the 18 of EDM and zero, to which ours is the final denoise."""
        from diffusers import EDMEulerScheduler

        class Network(torch.nn.Module):
            def forward(self, x, label, cond=None):
                return (2 * x).sin() + label[0]

        peer, process = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5), VE(0.002, 80.0)
        peer.set_timesteps(18)
        network = Network()
        x, score, times = 80 * self.x, ScoreFunction(network, process, EDM(0.5)), Karras(17)(process)
        ours = score.denoised(walk(DDIM(), score, times, x, [None] * 17), times[-1])
        for t in peer.timesteps:
            x = peer.step(network(peer.scale_model_input(x, t), t[None]), t, x).prev_sample
        close(ours, x)

    def test_score_sde_ve(self, monkeypatch):
        """The predictor's step between two entries of the ladder, and the corrector with the mean norms of the batch."""
        from diffusers import ScoreSdeVeScheduler
        from diffusers.schedulers import scheduling_sde_ve

        z = self.noise[0]
        monkeypatch.setattr(scheduling_sde_ve, "randn_tensor", lambda *a, **k: z)
        peer, process = ScoreSdeVeScheduler(100, snr=0.16, sigma_min=0.01, sigma_max=50.0), SigmaTable(0.01, 50.0, 100)
        score, times = Curved(process), process.table_times()
        for i in (99, 40, 1):
            expected = peer.step_pred(score(self.x, times[i]), (i + 0.1) / 99, self.x).prev_sample
            close(ReverseDiffusion().step(score, self.x, times[i], times[i - 1], Given(z), None)[0], expected)
            gradient = score(self.x, times[i])
            expected = peer.step_correct(gradient, self.x).prev_sample
            close(BatchLangevin(0.16).step(score, self.x, times[i], times[i], Given(z), None)[0], expected)


class TestScoreSDE:
    """The steps of Song et al. 2021 (2011.13456), each written out from its equation."""

    def setup_method(self):
        torch.manual_seed(1)
        self.x, self.z = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)

    def step(self, predictor, process, t, s):
        score = Curved(process)
        return predictor.step(score, self.x, t, s, Given(self.z), None)[0], score(self.x, t)

    @pytest.mark.parametrize("i", [999, 500, 1])
    def test_steps_on_ddpms_chain(self, i):
        process = BetaTable()
        beta, (s, t) = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[i], process.table_times()[i - 1 : i + 1]
        ours, score = self.step(ReverseDiffusion(), process, t, s)  # Algorithm 3, line 3
        close(ours, (2 - (1 - beta).sqrt()) * self.x + beta * score + beta.sqrt() * self.z)
        ours, score = self.step(Ancestral(fixed_large=True), process, t, s)  # eq. 4
        close(ours, (self.x + beta * score) / (1 - beta).sqrt() + beta.sqrt() * self.z)

    @pytest.mark.parametrize("i", [99, 50, 1])
    def test_steps_on_the_ladder(self, i):
        process = SigmaTable(0.01, 50.0, 100)
        sigma_s, sigma_t = process.sigmas[i - 1 : i + 1]
        s, t = process.table_times()[i - 1 : i + 1]
        gap = sigma_t**2 - sigma_s**2
        ours, score = self.step(ReverseDiffusion(), process, t, s)  # Algorithm 2, line 3
        close(ours, self.x + gap * score + gap.sqrt() * self.z)
        ours, score = self.step(Ancestral(), process, t, s)  # eq. 47
        close(ours, self.x + gap * score + (sigma_s**2 * gap / sigma_t**2).sqrt() * self.z)

    @pytest.mark.parametrize("time", [1.0, 0.5, 0.01])
    def test_euler_maruyama(self, time):
        t, dt = torch.tensor(time, dtype=torch.float64), 1e-3
        beta = 0.1 + 19.9 * t
        ours, score = self.step(EulerMaruyama(), VP(), t, t - dt)
        close(ours, self.x + (beta / 2 * self.x + beta * score) * dt + (beta * dt).sqrt() * self.z)
        ours, score = self.step(EulerMaruyama(), VE(0.01, 50.0), t, t - dt)
        g2 = (0.01 * 5000**t) ** 2 * 2 * math.log(5000)
        close(ours, self.x + g2 * score * dt + (g2 * dt).sqrt() * self.z)


@pytest.mark.parametrize("churn", [0.0, 30.0, 80.0])
def test_algorithm_two_of_edm(churn):
    """Karras et al. 2022 (2206.00364), Algorithm 2, line by line on sigma; ours adds no noise beyond sigma_max."""
    torch.manual_seed(2)
    process, steps, churn_min, churn_max, churn_noise = VE(0.002, 80.0), 17, 0.05, 30.0, 1.007
    score, sigmas = Curved(process), process.sigma(Karras(steps)(process))
    x0, *noise = torch.randn(1 + steps, 4, 3, 8, 8, dtype=torch.float64)

    def denoiser(x, sigma):
        return score.denoised(x, process.time_of(sigma))

    x = 80 * x0
    for i, z in enumerate(noise):
        gamma = min(churn / steps, math.sqrt(2) - 1) if churn_min <= sigmas[i] <= churn_max else 0.0
        raised = sigmas[i] + gamma * sigmas[i]
        x = x + (raised**2 - sigmas[i] ** 2).sqrt() * churn_noise * z
        d = (x - denoiser(x, raised)) / raised
        euler = x + (sigmas[i + 1] - raised) * d
        d_next = (euler - denoiser(euler, sigmas[i + 1])) / sigmas[i + 1]
        x = x + (sigmas[i + 1] - raised) * (d + d_next) / 2
    ours = walk(StochasticHeun(churn, churn_min, churn_max, churn_noise), score, Karras(steps)(process), 80 * x0, noise)
    close(ours, x)


class ScoreSDECode:
    """The predictor-corrector sampler of score SDE's authors, written from its formulas in double precision.

    At each of linspace(1, t_min, N) first the corrector, if any, then the predictor; the mean of the last step is kept.
    """

    def __init__(self, process, steps, t_min, snr=None):
        self.process, self.n, self.snr, self.score = process, steps, snr, Curved(process)
        self.times = torch.linspace(1, t_min, steps, dtype=torch.float64)

    def entry(self, t):
        return int((t * (self.n - 1) + 1e-9).floor())

    def beta(self, t):
        return 0.1 + 19.9 * t

    def discrete_beta(self, t):
        return torch.linspace(0.1 / self.n, 20 / self.n, self.n, dtype=torch.float64)[self.entry(t)]

    def gap(self, t):
        sigmas = torch.linspace(math.log(0.01), math.log(50), self.n, dtype=torch.float64).exp()
        i = self.entry(t)
        return sigmas[i], sigmas[i - 1] if i > 0 else torch.zeros(())

    def euler_maruyama(self, x, t):
        beta, kind = self.beta(t), type(self.process)
        discount = -torch.expm1(-2 * 0.1 * t - 19.9 * t**2) if kind is SubVP else 1.0
        f = 0.0 if kind is VE else -beta / 2
        g = (0.01 * 5000**t) * math.sqrt(2 * math.log(5000)) if kind is VE else (beta * discount) ** 0.5
        mean = x - (f * x - g**2 * self.score(x, t)) / self.n
        return mean, g * self.n**-0.5

    def reverse_diffusion(self, x, t):
        if isinstance(self.process, SubVP):
            return self.euler_maruyama(x, t)
        if isinstance(self.process, VE):
            sigma, adjacent = self.gap(t)
            variance = sigma**2 - adjacent**2
            return x + variance * self.score(x, t), variance**0.5
        beta = self.discrete_beta(t)
        return 2 * x - (1 - beta) ** 0.5 * x + beta * self.score(x, t), beta**0.5

    def ancestral(self, x, t):
        if isinstance(self.process, VE):
            sigma, adjacent = self.gap(t)
            variance = sigma**2 - adjacent**2
            return x + variance * self.score(x, t), (adjacent**2 * variance / sigma**2) ** 0.5
        beta = self.discrete_beta(t)
        return (x + beta * self.score(x, t)) / (1 - beta) ** 0.5, beta**0.5

    def corrected(self, x, t, z):
        gradient = self.score(x, t)
        alpha = 1 - self.discrete_beta(t) if type(self.process) is VP else 1.0
        ratio = z.flatten(1).norm(dim=1).mean() / gradient.flatten(1).norm(dim=1).mean()
        size = 2 * alpha * (self.snr * ratio) ** 2
        return x + size * gradient + (2 * size) ** 0.5 * z

    def __call__(self, predictor, noise):
        x = noise.normal() * (50.0 if isinstance(self.process, VE) else 1.0)
        for t in self.times:
            if self.snr is not None:
                x = self.corrected(x, t, noise.normal())
            mean, std = getattr(self, predictor)(x, t)
            x = mean + std * noise.normal()
        return mean


@pytest.mark.parametrize("snr", [None, 0.16])
@pytest.mark.parametrize(
    ("process", "t_min", "name", "predictor"),
    [
        (VP(), 1e-3, "euler_maruyama", EulerMaruyama()),
        (VP(), 1e-3, "reverse_diffusion", ReverseDiffusion()),
        (VP(), 1e-3, "ancestral", Ancestral(fixed_large=True)),
        (SubVP(), 1e-3, "euler_maruyama", EulerMaruyama()),
        (SubVP(), 1e-3, "reverse_diffusion", ReverseDiffusion()),
        (VE(0.01, 50.0), 1e-5, "euler_maruyama", EulerMaruyama()),
        (VE(0.01, 50.0), 1e-5, "reverse_diffusion", ReverseDiffusion()),
        (VE(0.01, 50.0), 1e-5, "ancestral", Ancestral()),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__ if not isinstance(v, float) else "",
)
def test_score_sde_samplers_as_they_stand(process, t_min, name, predictor, snr):
    """Whole chains with the same noise; their corrector for subVP raises an error."""
    if snr and isinstance(process, SubVP):
        return
    steps = 200
    expected = ScoreSDECode(process, steps, t_min, snr)(name, QuickNoise((3, 3, 4, 4)))
    corrector = BatchLangevin(snr) if snr else None
    initial = Prior(None if isinstance(process, VE) else 1.0)
    grid = ScoreSDESteps(steps, t_min)
    sampler = PredictorCorrector(predictor, corrector, predict_first=False, grid=grid, initial=initial)
    sampler.check(process)
    ours = sampler(Curved(process), QuickNoise((3, 3, 4, 4)))
    close(ours.x, expected)
    assert ours.nfe == sampler.evaluations(process) == steps * (2 if snr else 1)


def test_steps_of_one_nth_matter():
    """A uniform grid, whose steps have the length (1 - t_min)/N, gives other samples."""
    process = VP()
    uniform, theirs = (
        PredictorCorrector(EulerMaruyama(), grid=grid)(Curved(process), QuickNoise((3, 3, 4, 4))).x
        for grid in (Uniform(200, 1e-3), ScoreSDESteps(200, 1e-3))
    )
    assert float((uniform - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_dpm_solver(order):
    """diffusers takes the times within a step from its grid: it gets ours."""
    from diffusers import DPMSolverSinglestepScheduler

    torch.manual_seed(4)
    process, steps, solver = BetaTable(), 6, DPMSolver(order)
    score, x0, times = Curved(process), torch.randn(4, 3, 8, 8).double(), Karras(steps)(process)
    inside = solver.init(process, times)
    every = [u for t in times[:-1] for u in (t, *inside[float(t)])]
    peer = DPMSolverSinglestepScheduler(solver_order=order, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    peer.set_timesteps(len(every))
    peer.sigmas = process.noise_level(torch.stack([*every, times[-1]]))
    peer.timesteps, peer.order_list = torch.arange(len(every)), list(range(1, order + 1)) * steps
    theirs = x0
    for i, t in enumerate(every):
        last = i % order == order - 1  # Algorithm 2 takes phi_2 within the step, and for its end the noise found last
        peer.register_to_config(solver_type="midpoint" if last else "heun")
        theirs = peer.step(score.noise(theirs, t), i, theirs).prev_sample
    close(walk(solver, score, times, x0, [None] * steps), theirs)
