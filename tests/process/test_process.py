"""Every process against the definition of its Ito equation, its published formulas and its own inverses."""

import math
from typing import NamedTuple

import pytest
import torch
from conftest import CHAINS, PROCESSES, SMALL, MixtureScore, times
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.process import (
    VE,
    VP,
    BetaChain,
    BetaTable,
    Cosine,
    CosineTable,
    Linear,
    NoiseProcess,
    ScaledLinearBetas,
    SigmaTable,
    SubVP,
)
from lightning_score.sampling import Heun, KeepNoise, NoiseStream, PredictorCorrector, Uniform

CLOSED_FORMS = ("drift", "diffusion", "inverse_log_snr")


class OfTheUser(NoiseProcess):
    """A process as a user writes it: two functions, here those of an almost straight path from data to noise."""

    t_min = 1e-3

    def log_alpha(self, t):
        return torch.log1p(-0.95 * t)

    def sigma(self, t):
        return t


@pytest.fixture(params=[*{**dict.fromkeys(PROCESSES), **dict.fromkeys(CHAINS)}, OfTheUser], ids=lambda c: c.__name__)
def noise_process(request):
    """Each noise process, and one of which nothing but its two functions is known: the same laws hold for all."""
    return request.param(**SMALL.get(request.param, {}))


def test_the_noise_level_is_sigma_over_alpha_and_time_of_inverts_it(noise_process):
    level = noise_process.noise_level(times())
    torch.testing.assert_close(level, noise_process.sigma(times()) / noise_process.alpha(times()), rtol=1e-9, atol=0)
    torch.testing.assert_close(noise_process.time_of(level), times(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_equal_the_derived_ones(noise_process, name):
    argument = noise_process.log_snr(times()) if name == "inverse_log_snr" else times()
    derived = getattr(NoiseProcess, name)(noise_process, argument)
    torch.testing.assert_close(getattr(noise_process, name)(argument), derived, rtol=1e-9, atol=1e-9)


def test_inverse_log_snr_inverts(noise_process):
    torch.testing.assert_close(noise_process.inverse_log_snr(noise_process.log_snr(times())), times(), rtol=1e-9, atol=1e-9)


def test_transitions_compose(noise_process):
    s, u, t = (torch.tensor(v, dtype=torch.float64) for v in (0.2, 0.55, 0.9))
    (a1, b1), (a2, b2), (a, b) = (noise_process.transition(*pair) for pair in ((s, u), (u, t), (s, t)))
    torch.testing.assert_close(a, a1 * a2)
    torch.testing.assert_close(b**2, a2**2 * b1**2 + b2**2)


def test_transition_carries_one_marginal_into_the_next(noise_process):
    s, t = times(), times() + 0.01
    a, b = noise_process.transition(s, t)
    torch.testing.assert_close(a * noise_process.alpha(s), noise_process.alpha(t))
    torch.testing.assert_close(a**2 * noise_process.sigma(s) ** 2 + b**2, noise_process.sigma(t) ** 2)


def test_transition_in_single_precision_does_not_cancel(noise_process):
    s = times() - 0.0031
    exact = noise_process.transition(s, s + 0.002)[1]
    single = noise_process.transition(s.float(), (s + 0.002).float())[1]
    torch.testing.assert_close(single.double(), exact, rtol=2e-3, atol=0)


def test_moments_of_perturbed_data(noise_process):
    torch.manual_seed(0)
    n, t = 200_000, torch.tensor(0.4)
    x = noise_process.perturb(torch.full((n, 1), 2.0), t, torch.randn(n, 1))
    sigma = float(noise_process.sigma(t))
    assert abs(float(x.mean()) - 2 * float(noise_process.alpha(t))) < 5 * sigma / math.sqrt(n)
    assert abs(float(x.std()) / sigma - 1) < 5 / math.sqrt(2 * n)


def test_simulating_the_forward_equation_gives_the_moments_of_perturb(noise_process):
    """The exact moment equations dm = f m dt, dv = (2 f v + g^2) dt, by RK4 from t0 to t1."""
    t0, t1, steps = 0.3021, 0.3039, 40  # within one interval of the tables, where the coefficients are smooth
    m, v = (
        float(c(torch.tensor(t0, dtype=torch.float64))) for c in (noise_process.alpha, lambda t: noise_process.sigma(t) ** 2)
    )
    h = (t1 - t0) / steps

    def rates(t, m, v):
        t = torch.tensor(t, dtype=torch.float64)
        f, g = float(noise_process.drift(t)), float(noise_process.diffusion(t))
        return f * m, 2 * f * v + g * g

    for i in range(steps):
        t = t0 + i * h
        k1 = rates(t, m, v)
        k2 = rates(t + h / 2, m + h / 2 * k1[0], v + h / 2 * k1[1])
        k3 = rates(t + h / 2, m + h / 2 * k2[0], v + h / 2 * k2[1])
        k4 = rates(t + h, m + h * k3[0], v + h * k3[1])
        m += h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
        v += h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
    end = torch.tensor(t1, dtype=torch.float64)
    assert m == pytest.approx(float(noise_process.alpha(end)), rel=1e-9)
    assert v == pytest.approx(float(noise_process.sigma(end) ** 2), rel=1e-9)


def test_the_law_of_perturbed_data_solves_the_fokker_planck_equation(noise_process):
    """d log p/dt = -f (1 + x s) + g^2/2 (ds/dx + s^2) with the score s, which is dp/dt = -d(f x p)/dx + g^2/2 d^2p/dx^2.

    The left side comes from the coefficients alpha and sigma of a mixture, the right one from the derived f and g.
    """
    mixture = Mixture([[1.0], [-0.7]], [0.3, 0.5], [0.6, 0.4])
    x, t = (v.flatten() for v in torch.meshgrid(torch.linspace(-2, 2, 9).double(), times(9), indexing="ij"))
    x = x * (noise_process.alpha(t) ** 2 + noise_process.sigma(t) ** 2).sqrt()

    def log_prob(x, t):
        return mixture.log_prob(x.unsqueeze(-1), noise_process.alpha(t), noise_process.sigma(t))

    def score(x):
        return torch.func.jvp(lambda v: log_prob(v, t), (x,), (torch.ones_like(x),))[1]

    rate = torch.func.jvp(lambda v: log_prob(x, v), (t,), (torch.ones_like(t),))[1]
    s, curvature = torch.func.jvp(score, (x,), (torch.ones_like(x),))
    f, g = noise_process.drift(t), noise_process.diffusion(t)
    torch.testing.assert_close(rate, -f * (1 + x * s) + g**2 / 2 * (curvature + s**2), rtol=1e-8, atol=1e-8)


def test_particles_of_the_forward_equation_have_the_moments_of_perturb(noise_process):
    """Euler and Maruyama's scheme for dx = f x dt + g dw, from time 0.3 to 0.5, on which tables have 40 entries."""
    n, steps, generator = 40_000, 400, torch.Generator().manual_seed(0)
    path = torch.linspace(0.3, 0.5, steps + 1, dtype=torch.float64)
    middle, dt = (path[1:] + path[:-1]) / 2, 0.2 / steps

    def draw():
        return torch.randn(n, generator=generator, dtype=torch.float64)

    x_0 = 2 + 0.5 * draw()
    x = noise_process.perturb(x_0, path[0], draw())
    for f, g in zip(noise_process.drift(middle), noise_process.diffusion(middle), strict=True):
        x = x + f * x * dt + g * math.sqrt(dt) * draw()
    alpha, sigma = noise_process.alpha(path[-1]), noise_process.sigma(path[-1])
    std = float((alpha**2 * 0.25 + sigma**2).sqrt())
    assert abs(float(x.mean()) - 2 * float(alpha)) < 4 * std / math.sqrt(n) + 0.003 * float(alpha)
    assert abs(float(x.std()) / std - 1) < 4 / math.sqrt(2 * n) + 0.003
    covariance = float(torch.cov(torch.stack([x_0, x]))[0, 1])  # alpha var(x_0): the kernel, not only the marginal
    assert abs(covariance - 0.25 * float(alpha)) < 4 * 0.5 * std * math.sqrt(2 / n) + 0.003 * float(alpha)


def test_a_process_is_defined_by_two_functions():
    process, mixture = OfTheUser(), Mixture([[1.5], [-1.0]], [0.4, 0.3], [0.7, 0.3])
    t = times()
    torch.testing.assert_close(process.drift(t), -0.95 / (1 - 0.95 * t))
    torch.testing.assert_close(process.diffusion(t) ** 2, 2 * t + 1.9 * t**2 / (1 - 0.95 * t))
    sampler = PredictorCorrector(Heun(), grid=Uniform(40), denoise=KeepNoise())
    sampler.check(process)
    n = 4000
    x = sampler(MixtureScore(process, mixture), NoiseStream(0, range(n), (1,), dtype=torch.float64)).x.flatten()
    mean = 0.7 * 1.5 - 0.3
    std = math.sqrt(0.7 * (0.16 + 2.25) + 0.3 * (0.09 + 1.0) - mean**2)
    assert abs(float((x > 0.3).double().mean()) - 0.7) < 0.03
    assert abs(float(x.mean()) - mean) < 4 * std / math.sqrt(n) + 0.02 and abs(float(x.std()) / std - 1) < 0.04


COEFFICIENTS = ["log_alpha", "alpha", "sigma", "log_snr", "drift", "diffusion"]


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_caching_changes_no_coefficient(noise_process, name):
    """Those of the grid, others, many at once, in other precisions, and one within another."""
    function, grid, other = getattr(noise_process, name), times(9).flip(0), times(9) + 0.01
    expected = function(grid), function(other)
    with noise_process.cached_at(grid):
        for _ in range(2):
            torch.testing.assert_close(torch.stack([function(t) for t in grid]), expected[0])
        torch.testing.assert_close(torch.stack([function(t) for t in other]), expected[1])
        torch.testing.assert_close(function(grid), expected[0])
        assert function(grid[3].float()).dtype == torch.float32
        with noise_process.cached_at(other):
            torch.testing.assert_close(torch.stack([function(t) for t in other]), expected[1])
        torch.testing.assert_close(function(grid[2]), expected[0][2])


def test_the_process_of_a_user_is_cached_too():
    computed = []

    class Counted(OfTheUser):
        def sigma(self, t):
            computed.append(t)
            return super().sigma(t)

    process, grid = Counted(), times(9)
    with process.cached_at(grid):
        values = torch.stack([process.sigma(t) for t in grid])
    assert torch.equal(values, grid) and len(computed) == 1 and process.alpha(grid[0]) == OfTheUser().alpha(grid[0])


class Pair(NamedTuple):
    """A ratio and a sum of coefficients of two times."""

    ratio: torch.Tensor
    sum: torch.Tensor


def test_numbers_of_a_grid_are_those_of_its_times(noise_process):
    """Computed once at times of the grid; also other times, and several at once, find their own."""
    grid, computed = times(9).flip(0), []

    def pair(t, s):
        computed.append(t)
        return Pair(noise_process.sigma(s) / noise_process.sigma(t), noise_process.alpha(t) + s)

    def close(found, t, s):
        torch.testing.assert_close(torch.stack([*map(torch.as_tensor, found)]).double(), torch.stack(pair(t, s)))
        computed.pop()

    with noise_process.cached_at(grid):
        for _ in range(2):
            found = noise_process.numbers("pair", pair, grid[1], grid[2])
            assert all(isinstance(number, float) for number in found)
            close(found, grid[1], grid[2])
        assert len(computed) == 1
    with noise_process.cached_at(times(7).flip(0)):
        close(noise_process.numbers("pair", pair, times(7)[1], times(7)[2]), times(7)[1], times(7)[2])
        close(noise_process.numbers("pair", pair, grid[1], grid[2]), grid[1], grid[2])
        close(noise_process.numbers("pair", pair, grid[1:3], grid[2:4]), grid[1:3], grid[2:4])
    assert len(computed) == 4


def test_a_process_that_has_changed_finds_its_own_numbers():
    process, grid = VP(), times(9).flip(0)
    for beta_max in (20.0, 10.0):
        process.beta_max = beta_max
        with process.cached_at(grid):
            found = process.numbers("one", lambda t: Pair(process.alpha(t), process.sigma(t)), grid[3])
            assert process.sigma(grid[3]) == VP(beta_max=beta_max).sigma(grid[3])
        torch.testing.assert_close(torch.tensor(found[0]).double(), VP(beta_max=beta_max).alpha(grid[3]))


def test_prior_has_the_variance_of_the_end(noise_process):
    assert torch.equal(noise_process.prior(torch.ones(2, 3)), noise_process.sigma(torch.ones(())) * torch.ones(2, 3))


def test_no_parameters_and_no_state_and_exact_tables_in_half_precision(noise_process):
    before = noise_process.sigma(times())
    assert not list(noise_process.parameters()) and not noise_process.state_dict()
    assert torch.equal(noise_process.half().sigma(times()), before)


def test_vp_formulas():
    t = times()
    integral = 0.1 * t + 19.9 * t**2 / 2
    torch.testing.assert_close(VP().alpha(t), (-integral / 2).exp())
    torch.testing.assert_close(VP().sigma(t), (1 - (-integral).exp()).sqrt())
    torch.testing.assert_close(VP().diffusion(t) ** 2, 0.1 + 19.9 * t)
    torch.testing.assert_close(SubVP().sigma(t), 1 - (-integral).exp())
    torch.testing.assert_close(SubVP().diffusion(t) ** 2, (0.1 + 19.9 * t) * (1 - (-2 * integral).exp()))


def test_ve_formulas():
    process = VE(0.002, 80.0)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(process.sigma(ends), torch.tensor([0.002, 80.0], dtype=torch.float64))
    torch.testing.assert_close(process.diffusion(times()), process.sigma(times()) * math.sqrt(2 * math.log(80 / 0.002)))


def test_cosine_formula():
    t = times()
    alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(Cosine().alpha(t) ** 2, alpha_bar)
    assert float(Cosine().log_alpha(torch.tensor(1.0))) > -math.inf


def test_beta_table_is_ddpm():
    process = BetaTable()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(process.betas, betas)
    torch.testing.assert_close(process.alpha(process.table_times()) ** 2, torch.cumprod(1 - betas, 0))
    a, b = process.transition(process.table_times()[:-1], process.table_times()[1:])
    torch.testing.assert_close(b**2, betas[1:])
    torch.testing.assert_close(a**2, 1 - betas[1:])


@pytest.mark.parametrize(
    ("process", "name", "options"),
    [
        (BetaTable(1e-4, 0.02, 1000), "linear", {}),
        (ScaledLinearBetas(1e-4, 0.02, 300), "scaled_linear", {"num_train_timesteps": 300}),
        (CosineTable(steps=500), "squaredcos_cap_v2", {"num_train_timesteps": 500}),
        (BetaChain([0.1, 0.5, 0.2]), "linear", {"num_train_timesteps": 3, "trained_betas": [0.1, 0.5, 0.2]}),
    ],
    ids=lambda p: type(p).__name__,
)
def test_chains_are_those_of_diffusers(process, name, options):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule=name, **options)
    torch.testing.assert_close(process.betas, scheduler.betas.double(), rtol=1e-6, atol=0)
    alphas = process.alpha(process.table_times()) ** 2
    torch.testing.assert_close(alphas, (1 - process.betas).cumprod(0), rtol=1e-12, atol=0)


def test_beta_table_tends_to_vp_like_one_over_n():
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    errors = [float((BetaTable(0.1 / n, 20 / n, n).alpha(t) - VP().alpha(t)).abs().max()) for n in (100, 200, 400)]
    assert 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2


def test_sigma_table_is_the_geometric_ladder():
    process = SigmaTable(0.01, 1.0, 10)
    ladder = torch.logspace(-2, 0, 10, dtype=torch.float64)
    torch.testing.assert_close(process.sigmas, ladder)
    torch.testing.assert_close(process.sigma(process.table_times()), ladder)


def test_a_ladder_of_equal_steps():
    process = SigmaTable(0.1, 1.0, 10, geometric=False)
    torch.testing.assert_close(process.sigmas, torch.arange(1, 11).double() / 10)
    torch.testing.assert_close(process.sigma(process.table_times()), process.sigmas)


@pytest.mark.parametrize("process", [BetaTable(steps=10, beta_max=0.3), SigmaTable(levels=10)])
def test_indices_of_tables_map_to_times(process):
    """Entry i is at t = i/N, t = 0 is clean data, and the coefficient is constant between entries."""
    n = 10
    torch.testing.assert_close(process.table_times(), torch.arange(1, n + 1, dtype=torch.float64) / n)
    assert torch.equal(process.index(process.table_times()), torch.arange(1, n + 1))
    assert float(process.sigma(torch.zeros(()))) == 0 and float(process.alpha(torch.zeros(()))) == 1
    inside = torch.tensor([0.41, 0.45, 0.49, 0.5], dtype=torch.float64)
    diffusion = process.diffusion(inside)
    torch.testing.assert_close(diffusion, diffusion[:1].expand(4))


def test_one_level_is_allowed():
    assert SigmaTable(0.5, 0.5, 1).sigmas.tolist() == [0.5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP(20, 0.1), "beta_min=20"),
        (lambda: VE(50, 0.01), "sigma_min=50"),
        (lambda: VE(0, 1), "sigma_min=0"),
        (lambda: SigmaTable(1, 0.01), "sigma_min=1"),
        (lambda: SigmaTable(1, 1), "sigma_min=1"),
        (lambda: SigmaTable(levels=0), "levels=0"),
        (lambda: BetaTable(steps=0), "steps=0"),
        (lambda: BetaTable(beta_max=1.5), "beta_max=1.5"),
        (lambda: ScaledLinearBetas(beta_min=0.0), "beta_min=0.0"),
        (lambda: CosineTable(offset=0.0), "offset=0.0"),
        (lambda: CosineTable(beta_max=1.0), "beta_max=1.0"),
        (lambda: BetaChain([]), "need at least one"),
        (lambda: BetaChain([0.1, 1.1]), "to 1.1"),
        (lambda: Cosine(t_max=1.0), "t_max=1.0"),
        (lambda: VE().table_times(), "VE"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()


class TestNoiseAlone:
    """Processes with alpha(1) = 0."""

    @pytest.mark.parametrize(
        ("chain", "plain"),
        [
            (BetaTable(zero_snr=True), BetaTable()),
            (ScaledLinearBetas(zero_snr=True), ScaledLinearBetas()),
            (CosineTable(zero_snr=True), CosineTable()),
            (BetaChain([0.1, 0.2, 0.4], zero_snr=True), BetaChain([0.1, 0.2, 0.4])),
        ],
        ids=lambda p: type(p).__name__,
    )
    def test_the_betas_are_those_of_diffusers(self, chain, plain):
        betas = rescale_zero_terminal_snr(plain.betas.clone())
        torch.testing.assert_close(chain.betas, betas, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            BetaChain(betas.tolist()).log_alpha(chain.table_times()), chain.log_alpha(chain.table_times())
        )
        times = chain.table_times()
        torch.testing.assert_close(chain.alpha(times) ** 2, (1 - betas).cumprod(0), rtol=1e-9, atol=1e-15)
        assert float(chain.alpha(times)[-1]) == 0 and float(chain.sigma(times)[-1]) == 1

    @pytest.mark.parametrize("process", [Linear(), BetaTable(zero_snr=True)], ids=lambda p: type(p).__name__)
    def test_the_last_time_with_signal(self, process):
        t = torch.tensor([0.3, process.t_signal, 1.0], dtype=torch.float64)
        assert float(process.noise_level(t[1])) == pytest.approx(1000)
        assert process.with_signal(t).tolist() == [0.3, process.t_signal, process.t_signal]
        assert [process.is_noise(each) for each in t] == [False, False, True]
        a, b = process.transition(t[:2], t[1:].new_ones(2))
        assert a.tolist() == [0, 0] and b.tolist() == process.sigma(t[2:]).expand(2).tolist()
        inside = times()
        torch.testing.assert_close(process.inverse_log_snr(process.log_snr(inside)), inside)
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            one = torch.ones((), dtype=dtype)
            for last, level in ((process.trainable(one), 1.01e5), (process.with_signal(one), 1010)):
                assert 10 < float(process.noise_level(last)) < level

    def test_what_is_wrong(self):
        with pytest.raises(InputError, match=r"zero_snr=True, betas=.*: noise alone needs a step before it"):
            BetaChain([0.5], zero_snr=True)
        with pytest.raises(InputError, match="need at least one, each in"):
            BetaChain([0.5, 1.0, 0.5])
