"""Every process against the definition of its Ito equation, its published formulas and its own inverses."""

import math

import pytest
import torch
from conftest import times

from lightning_score.process import VE, VP, BetaTable, Cosine, NoiseProcess, SigmaTable, SubVP
from lightning_score.utils import InputError

CLOSED_FORMS = ("drift", "diffusion", "inverse_log_snr")


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


def test_beta_table_tends_to_vp_like_one_over_n():
    t = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    errors = [float((BetaTable(0.1 / n, 20 / n, n).alpha(t) - VP().alpha(t)).abs().max()) for n in (100, 200, 400)]
    assert 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2


def test_sigma_table_is_the_geometric_ladder():
    process = SigmaTable(0.01, 1.0, 10)
    ladder = torch.logspace(-2, 0, 10, dtype=torch.float64)
    torch.testing.assert_close(process.sigmas, ladder)
    torch.testing.assert_close(process.sigma(process.table_times()), ladder)


@pytest.mark.parametrize("process", [BetaTable(steps=10, beta_max=0.3), SigmaTable(levels=10)])
def test_tables_say_how_indices_map_to_times(process):
    """Entry i stands at t = i/N, t = 0 is clean data, and the coefficient is constant between entries."""
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
        (lambda: Cosine(t_max=1.0), "t_max=1.0"),
        (lambda: VE().table_times(), "VE"),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(InputError, match=words):
        make()
