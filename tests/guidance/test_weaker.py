"""Guidance by a weaker model, and any guidance within an interval: closed forms, laws of samples, costs, and refusals."""

import math
import re
from functools import partial

import pytest
import torch
from conftest import MixtureScore, times
from labeled import MODES, ExactClassifier, LabeledScore, rows
from laws import gaussian, moments
from posteriors import LawScore, gaussian as gaussian_problem
from scipy.integrate import solve_ivp
from torch import nn

from lightning_score import ScoreModel
from lightning_score.cli import run
from lightning_score.data import Mixture
from lightning_score.errors import InputError
from lightning_score.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Composed,
    Mask,
    MomentMatching,
    OtherModel,
    PseudoInverse,
)
from lightning_score.networks import MLP
from lightning_score.process import VE, VP, BetaTable, Linear
from lightning_score.runs.records import settings_of
from lightning_score.sampling import (
    DDIM,
    RK45,
    EulerMaruyama,
    Given,
    Learned,
    PredictorCorrector,
    ProbabilityFlow,
    Tweedie,
    Uniform,
)
from lightning_score.sampling.likelihood import log_likelihood
from lightning_score.sampling.noise import NoiseStream
from lightning_score.score import Flow
from lightning_score.score.function import Conditioned, ScoreFunction
from lightning_score.score.guided import Within
from lightning_score.score.posterior import posterior_of
from lightning_score.tensors import broadcast_to
from lightning_score.training.learned_times import fingerprint
from lightning_score.training.loading import other_model

WIDER = Mixture([[-0.6, 0.4], [0.8, -0.2]], [0.7, 0.6], [0.4, 0.6])


def by(weak, scale, interval=None):
    """Guidance by an exact score."""
    guidance = Autoguidance("weak.ckpt", scale, interval)
    guidance.load_models(lambda path: OtherModel(weak, None))
    return guidance


@pytest.mark.parametrize("scale", [0.0, 0.7, 3.0])
def test_the_score_its_denoised_image_and_a_step_are_the_formula(noise_process, scale):
    x, t, _ = rows()
    strong, weak = MixtureScore(noise_process, MODES), MixtureScore(noise_process, WIDER)
    expected = weak(x, t) + scale * (strong(x, t) - weak(x, t))
    strong.evaluations = weak.evaluations = 0
    guided = by(weak, scale).guide(strong, torch.arange(len(x)))
    torch.testing.assert_close(guided(x, t), expected)
    assert guided.evaluations == strong.evaluations == 2 * len(x) and weak.evaluations == len(x)
    torch.testing.assert_close(guided(x, t[7])[7], expected[7])
    a, b = torch.linspace(-1, 1, len(x)).double(), torch.linspace(2, 0.5, len(x)).double()
    step = guided.combination(x, t, x_scale=a, score_scale=b)
    torch.testing.assert_close(step, a[:, None] * x + b[:, None] * expected)
    alpha, sigma = broadcast_to(noise_process.alpha(t), x), broadcast_to(noise_process.sigma(t), x)
    torch.testing.assert_close(guided.denoised(x, t), (x + sigma**2 * expected) / alpha)


def test_scale_one_is_the_plain_score_at_its_plain_cost():
    score = MixtureScore(VP(), MODES)
    assert by(MixtureScore(VP(), WIDER), 1.0).guide(score, torch.arange(4)) is score


def test_after_classifier_free_guidance_it_leads_away_from_the_weak_conditional_score():
    """w (s(x) + v (s(x given y) - s(x))) + (1 - w) weak(x given y), at three evaluations."""
    x, t, cond = rows()
    strong, weak = LabeledScore(VP()), LabeledScore(VP())
    expected = 1.5 * (3 * strong(x, t, cond) - 2 * strong(x, t)) - 0.5 * (2 * weak(x, t, cond))
    twice = weak.forward
    weak.forward = lambda *arguments: 2 * twice(*arguments)
    strong.evaluations = 0
    guided = Composed([ClassifierFree(3.0), by(weak, 1.5)]).guide(strong, cond)
    torch.testing.assert_close(guided(x, t, cond), expected)
    assert guided.evaluations == 3 * len(x)


@pytest.mark.parametrize("weaker", [True, False])
def test_from_noise_alone_denoised_images_are_extrapolated(weaker):
    """At alpha = 0, where the score of the process does not tell them."""
    torch.manual_seed(0)
    strong, weak = (ScoreFunction(MLP((2,), 3, width=8, depth=1), Linear(), Flow(), num_classes=3) for _ in range(2))
    for part in (strong, weak):
        nn.init.normal_(part.network.linear_out.weight)  # as built, the network returns zero
    x, t, y = torch.randn(5, 2), torch.tensor(1.0), torch.full((5,), 1)
    none = torch.full((5,), 3)
    if weaker:
        found, parts = by(weak, 2.0).guide(strong, y).denoised(x, t, y), (strong.denoised(x, t, y), weak.denoised(x, t, y))
    else:
        found = ClassifierFree(2.0, (0.0, math.inf)).guide(strong, y).denoised(x, t, y)
        parts = strong.denoised(x, t, y), strong.denoised(x, t, none)
    torch.testing.assert_close(found, 2 * parts[0] - parts[1])
    assert bool(found.isfinite().all()) and (parts[0] - parts[1]).abs().max() > 0.1


INTERVAL = (0.3, 2.0)
Y = torch.tensor([[0.4]], dtype=torch.float64)
GUIDANCES = {  # and the evaluations that they cost
    "ClassifierFree": (partial(ClassifierFree, 2.5), 2),
    "ClassifierGuidance": (partial(ClassifierGuidance, ExactClassifier(VP()), 2.5), 1),
    "Autoguidance": (partial(by, MixtureScore(VP(), WIDER), 2.5), 2),
    "PseudoInverse": (partial(PseudoInverse, Mask([1, 0]), Y, noise_std=0.1), 1),
}


@pytest.mark.parametrize("name", GUIDANCES)
def test_any_guidance_is_confined_to_an_interval_of_noise_levels(name):
    """One time decides for all rows, and costs nothing outside; of several times each decides for its row."""
    (make, cost), score = GUIDANCES[name], LabeledScore(VP())
    x, t, cond = rows()
    plain, guided = score(x, t, cond), make().guide(score, torch.arange(len(x)))(x, t, cond)
    level = VP().noise_level(t)
    inside = (level > INTERVAL[0]) & (level <= INTERVAL[1])
    assert 5 < int(inside.sum()) < len(x) - 5 and bool(((guided - plain).abs().sum(1) > 1e-4)[inside].all())
    confined = make(interval=INTERVAL).guide(score, torch.arange(len(x)))
    torch.testing.assert_close(confined(x, t, cond), torch.where(inside[:, None], guided, plain))
    alpha, sigma = broadcast_to(VP().alpha(t), x), broadcast_to(VP().sigma(t), x)
    denoised = (x + sigma**2 * torch.where(inside[:, None], guided, plain)) / alpha
    torch.testing.assert_close(confined.denoised(x, t, cond), denoised)
    for row in (0, int(inside.nonzero()[3]), len(x) - 1):
        before = confined.evaluations
        found = confined(x, t[row], cond)[row]
        torch.testing.assert_close(found, torch.where(inside[row], guided, plain)[row])
        assert confined.evaluations - before == len(x) * (cost if inside[row] else 1)


def test_the_interval_is_open_below_and_closed_above_and_may_be_unbounded():
    """At alpha = 0, where sigma/alpha is infinite, a bounded interval has ended."""
    score = MixtureScore(VE(0.01, 50.0))
    levels = score.process.noise_level(times(3, 0.2, 0.8) - 1e-4)
    assert Within(score, score, levels[0], levels[1]).inside(times(3, 0.2, 0.8) - 1e-4).tolist() == [0, 1, 0]

    straight = MixtureScore(Linear())
    for high, inside in ((100.0, False), (math.inf, True)):
        assert bool(Within(straight, straight, 0.2, high).inside(torch.tensor(1.0))) == inside


STD, WEAK, SCALE = 0.4, 0.7, 2.0


def stretch(low, high, scale):
    """By how much the probability flow of the guided score stretches y = x/alpha between two noise levels.

    With u the squared level, d log(y - m)/du = 1/2 (scale/(s^2 + u) + (1 - scale)/(w^2 + u)).
    """
    ratio = lambda std: (std**2 + high**2) / (std**2 + low**2)  # noqa: E731
    return (ratio(STD) ** scale * ratio(WEAK) ** (1 - scale)) ** 0.5


def guided_gaussian(process, interval):
    score = by(gaussian(process, std=WEAK), SCALE, interval).guide(gaussian(process, std=STD), torch.arange(8))
    high, low = process.noise_level(ProbabilityFlow().grid(process)).tolist()
    a, b = interval or (low, high)
    return score, low, high, stretch(low, a, 1.0) * stretch(a, b, SCALE) * stretch(b, high, 1.0)


@pytest.mark.parametrize("process", [VE(0.01, 20.0), VP(), BetaTable(1e-3, 0.1, 200)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("interval", [None, (0.2, 1.5)])
def test_samples_of_the_probability_flow_follow_the_closed_form(process, interval):
    """Samples and their density. Without an interval, and from much noise, the standard deviation is s^w/weak^(w - 1), and
    that of the law s(x)^w/weak(x)^(w - 1) is another one.
    """
    score, _, high, factor = guided_gaussian(process, interval)
    flow = ProbabilityFlow(RK45(1e-6, 1e-6))
    start, end = flow.grid(process)
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64).unsqueeze(1)
    x = process.alpha(start) * 0.5 + process.sigma(start) * noise
    expected = process.alpha(end) * (0.5 + (x / process.alpha(start) - 0.5) / factor)
    std = high / factor
    assert abs(std - (STD**SCALE * WEAK ** (1 - SCALE))) < 0.02 or interval
    torch.testing.assert_close(
        flow.decode(score, x), expected, atol=(3e-2 if interval else 1e-4) * std, rtol=0
    )  # a jump costs the solver accuracy
    found = log_likelihood(score, expected, NoiseStream(0, range(8), [1], dtype=torch.float64)).value
    prior = torch.distributions.Normal(0.0, float(process.sigma(start)), validate_args=False)
    exact = prior.log_prob(x).squeeze(1) + math.log(float(process.alpha(start) / process.alpha(end))) + math.log(factor)
    torch.testing.assert_close(found, exact, atol=1e-2, rtol=0)


@pytest.mark.parametrize("interval", [None, (0.2, 1.5)])
def test_samples_of_the_reverse_sde_have_the_variance_of_the_guided_law(interval):
    """For VE with u = sigma^2 the variance of x obeys dv/du = 2 k v - 1 with score -k (x - m)."""
    process = VE(0.02, 10.0)
    score, low, high, _ = guided_gaussian(process, interval)
    a, b = interval or (low, high)

    def slope(u, v):
        scale = SCALE if a**2 < u <= b**2 else 1.0
        return 2 * (scale / (STD**2 + u) + (1 - scale) / (WEAK**2 + u)) * v - 1

    exact = solve_ivp(slope, (high**2, low**2), [high**2], rtol=1e-8, max_step=0.05).y[0, -1]
    grid = torch.linspace(1.0, process.t_min, 801, dtype=torch.float64)
    stages = PredictorCorrector(EulerMaruyama()).plan(process, grid)
    states = {method: method.init(process, grid) for method in {stage.method for stage in stages}}
    mean, variance = moments(score, stages, states, 0.5, high**2)
    assert abs(mean - 0.5) < 1e-6 and abs(variance**0.5 / exact**0.5 - 1) < 0.02
    unguided = moments(gaussian(process), stages, states, 0.5, high**2)[1]
    assert abs(variance**0.5 / unguided**0.5 - 1) > 0.1


def test_a_twisted_sampler_finds_the_observation_within_an_interval():
    """Its proposals are unguided outside, and its weights are those without an interval."""
    problem, generator, t = gaussian_problem(), torch.Generator().manual_seed(0), times(12)
    y = problem.observe(problem.prior.sample(1, generator), generator)
    x, prior = problem.prior.sample(12, generator), LawScore(VP(), problem.prior)
    guidance = MomentMatching(problem.operator, y, noise=problem.noise, iterations=6, interval=INTERVAL)
    within = Conditioned(guidance.guide(prior, torch.arange(12)), torch.zeros(12))
    free = (
        MomentMatching(problem.operator, y, noise=problem.noise, iterations=6).guide(prior, torch.arange(12)).twisted(x, t)
    )
    found, inside = posterior_of(within, "TwistedSMC").twisted(x, t), within.score.inside(t)
    torch.testing.assert_close(found.log_likelihood, free.log_likelihood)
    torch.testing.assert_close(found.gradient[inside], free.gradient[inside])
    assert bool(inside.any()) and not bool(found.gradient[~inside].any())
    torch.testing.assert_close(within(x, t), found.score + found.gradient)


SMALL = partial(MLP, width=8, depth=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two trainings of a model of points in the plane, and one of another process."""
    folder = tmp_path_factory.mktemp("weaker")
    quick = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.accelerator=cpu",
             "--trainer.callbacks=null", "--trainer.logger=false", "--samples.num_samples=0", "--evaluate.distances=[]",
             "--data.num_samples=400", "--data.batch_size=64", "--model.sampler.steps=1"]  # fmt: skip
    options = {"weak": ["--seed_everything=1"], "strong": [], "other": ["--model.process.sigma_max=9"]}
    for name, own in options.items():
        assert run(["fit", "--config=toy", f"--runs={folder}", f"--name={name}", *quick, *own]) == 0
    return {name: str((folder / name / "latest" / "last.ckpt").resolve()) for name in options}


def loaded(runs, guidance):
    return ScoreModel.load_from_checkpoint(runs["strong"], guidance=guidance).eval()


def test_a_checkpoint_guides_a_model_and_is_no_part_of_it(runs):
    """Its rows are counted with the model's, nothing of it is trained or saved, and a sample depends on its number alone."""
    torch.manual_seed(0)
    plain, weak = loaded(runs, None), ScoreModel.load_from_checkpoint(runs["weak"]).eval()
    guided = loaded(runs, Autoguidance(runs["weak"], 1.5))
    assert guided.state_dict().keys() == plain.state_dict().keys()
    assert len([*guided.parameters()]) == len([*plain.parameters()])
    sampler = PredictorCorrector(EulerMaruyama(), grid=Uniform(6))
    for model in (plain, guided):
        model.use(sampler, model.guidance)
    numbers = torch.arange(5)
    x, t = 3 * torch.randn(5, 2), torch.tensor(0.5)
    expected = 1.5 * plain.score_function(x, t) - 0.5 * weak.score_function(x, t)
    guided.train()
    torch.testing.assert_close(guided.sampled_score(numbers, None)(x, t), expected)
    assert not guided.guidance.weak.training and not any(p.requires_grad for p in guided.guidance.weak.parameters())
    before = guided.score_function.evaluations
    whole = guided.draw(range(5), 3)
    assert whole.nfe == 2 * plain.draw(range(5), 3).nfe == 12 and guided.score_function.evaluations - before == 60
    torch.testing.assert_close(guided.draw([4, 1], 3).x, whole.x[[4, 1]])
    assert (whole.x - plain.draw(range(5), 3).x).abs().max() > 1e-3
    double = loaded(runs, Autoguidance(runs["weak"], 1.5)).double()
    torch.testing.assert_close(
        double.sampled_score(numbers, None)(x.double(), t.double()), expected.double(), atol=1e-3, rtol=1e-4
    )


def test_loading_it_draws_no_random_numbers(runs):
    model = loaded(runs, None)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model.use(None, Autoguidance(runs["weak"]))
    assert torch.equal(torch.get_rng_state(), state)


def test_records_and_learned_times_know_its_weights(runs):
    """Of two models by the path of the weak one, which another training may replace."""
    first, second = (loaded(runs, Autoguidance(runs[name])) for name in ("weak", "strong"))
    for model in (first, second):
        model.guidance.model = "same.ckpt"
    sampler = PredictorCorrector(EulerMaruyama(), grid=Learned(4))
    marks = [fingerprint(model, sampler) for model in (first, second)]
    first.draw(range(2))
    assert marks[0] != marks[1] and fingerprint(first, sampler) == marks[0]
    settings = settings_of(first.guidance)
    assert settings["class"] == "Autoguidance" and settings["scale"] == 1.5 and settings["interval"] is None
    assert settings["weak"] != settings_of(second.guidance)["weak"] and len(settings["weak"]["weights"]) == 8


@pytest.mark.parametrize(("low", "high", "nfe"), [(None, None, 8), (0.9, 1.1, 5), (0.0, 0.9, 6), (1.1, math.inf, 5)])
def test_both_networks_count_in_the_interval_alone(runs, low, high, nfe):
    """Of three steps and a denoising one, in an interval around, below or above the second level."""
    model = loaded(runs, None)
    grid = Given([1.0, 0.6, 0.3, 0.1])
    second = float(model.score_function.process.noise_level(torch.tensor(0.6, dtype=torch.float64)))
    interval = None if low is None else [low * second, high * second]
    model.use(PredictorCorrector(DDIM(), grid=grid, denoise=Tweedie()), Autoguidance(runs["weak"], 1.5, interval))
    assert model.draw(range(3)).nfe == nfe


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.guidance.scale=-1"], "scale=-1.0: must be 0"),
        (["--model.guidance.scale=1e300"], r"scale=1e\+300: must be 0 .* up to 1e\+06"),
        (["--model.guidance.scale=.inf"], "scale=inf: must be 0"),
        (["--model.guidance.interval=[2, 1]"], r"interval=\[2.0, 1.0\]: must be two increasing"),
        (["--model.guidance.interval=[1]"], r"interval=\[1.0\]: must be two increasing"),
        (["--model.guidance.model=nowhere.ckpt"], "guidance.model=.*nowhere.ckpt: .*there is no such file.*guidance: null"),
        (
            ["--model.guidance.model=digits/ddpm"],
            r"guidance.model=digits/ddpm: draws samples of shape \[1, 8, 8\], not \[2\]",
        ),
        (["--model.guidance.model={other}"], "its noise process .* is another one than the model's"),
    ],
)
def test_mistakes_are_said_before_anything_is_drawn(runs, options, words, tmp_path, capsys):
    command = ["predict", f"--ckpt_path={runs['strong']}", f"--output={tmp_path / 'out'}", "--model.guidance=Autoguidance"]
    given = [option.format(**runs) for option in options]
    weak = [] if "guidance.model" in given[0] else [f"--model.guidance.model={runs['weak']}"]
    assert run([*command, *weak, *given]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_other_models_that_do_not_fit_are_refused(runs, tmp_path):
    """Data of another range, other conditions, and a model whose parts the checkpoint does not hold."""
    guidance = Autoguidance("digits/ddpm")
    ScoreModel.load_from_checkpoint("digits/ddpm", guidance=guidance)
    guidance.check_range((-1.0, 1.0))
    guidance.check_range(None)
    with pytest.raises(InputError, match=r"guidance.model=digits/ddpm: was trained on data from \(-1.0, 1.0\)"):
        Composed([guidance]).check_range((0.0, 1.0))
    unconditional, conditional = (ScoreModel.load_from_checkpoint(f"digits/{name}") for name in ("vp_pc", "conditional"))
    with pytest.raises(InputError, match=r"guidance.model=digits/conditional: is given other conditions"):
        other_model(unconditional, "digits/conditional")
    assert other_model(conditional, "digits/vp_pc").score.condition is None
    with pytest.raises(InputError, match="its model is not loaded"):
        Autoguidance("digits/ddpm").guide(unconditional.score_function, torch.arange(1))
    built = ScoreModel(SMALL, (2,), VE(0.1, 3.0))
    torch.save({"state_dict": built.state_dict(), "pytorch-lightning_version": "2.6.6"}, tmp_path / "built.ckpt")
    with pytest.raises(InputError, match="built in Python"):
        other_model(built, str(tmp_path / "built.ckpt"))
