"""Guidance by labels: the guided scores against closed forms, and what they cost."""

import pytest
import torch
from conftest import ExactScore, MixtureScore
from labeled import MODES, ExactClassifier, LabeledScore, rows
from torch import nn
from torch.nn import functional as F

from lightning_score import ScoreModel
from lightning_score.conditions import Vector
from lightning_score.errors import InputError
from lightning_score.guidance import ClassifierFree, ClassifierGuidance, Composed, PseudoInverse
from lightning_score.networks import MLP
from lightning_score.observations import Mask
from lightning_score.process import VP
from lightning_score.sampling import EulerMaruyama, PredictorCorrector, Uniform
from lightning_score.sampling.noise import NoiseStream
from lightning_score.score.function import Conditioned
from lightning_score.tensors import broadcast_to


class GaussianGiven(ExactScore):
    """The exact score of x given y from N(A y + b, S), y from N(0, I); of x alone where y is "no condition"."""

    A, b, S = torch.tensor([[1.0, -0.5, 0.0], [0.3, 0.0, 0.8]]).double(), torch.tensor([0.5, -1.0]).double(), 0.2

    def __init__(self, process):
        super().__init__(process)
        self.condition = Vector(3)

    def law(self, t, y):
        """The precision of p_t, (B, 2, 2), and the precision times its mean, (B, 2)."""
        alpha, sigma = self.process.alpha(t)[:, None], self.process.sigma(t)[:, None, None]
        empty = self.condition.is_empty(y)[:, None]
        mean = self.b + torch.where(empty, 0.0, y).double() @ self.A.mT
        data = self.S * torch.eye(2) + torch.where(empty[:, :, None], self.A @ self.A.mT, 0.0)
        precision = torch.linalg.inv(alpha[:, :, None] ** 2 * data + sigma**2 * torch.eye(2).double())
        return precision, (precision @ (alpha * mean)[:, :, None]).squeeze(-1)

    def forward(self, x, t, cond=None):
        self.evaluations += len(x)
        precision, weighted = self.law(t, cond)
        return weighted - (precision @ x[:, :, None]).squeeze(-1)


@pytest.mark.parametrize("scale", [0.0, 0.7, 3.0])
def test_guidance_by_a_vector_is_the_score_of_a_gaussian_in_closed_form(noise_process, scale):
    """s(x) + w (s(x given y) - s(x)) has the precision (1 - w) P + w P_y, and that mean times it."""
    score = GaussianGiven(noise_process)
    x, t, _ = rows()
    y = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(1))
    guided = ClassifierFree(scale).guide(score, torch.arange(len(x)))(x, t, y)
    assert score.evaluations == 2 * len(x)
    (free, free_weighted), (given, given_weighted) = score.law(t, score.condition.empty(len(x))), score.law(t, y)
    precision, weighted = torch.lerp(free, given, scale), torch.lerp(free_weighted, given_weighted, scale)
    mean = torch.linalg.solve(precision, weighted)
    torch.testing.assert_close(guided, (precision @ (mean - x)[:, :, None]).squeeze(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.7, 3.0])
def test_classifier_free_and_classifier_guidance_are_the_same_closed_form(noise_process, scale):
    """scale s(x given y) + (1 - scale) s(x), from labels, and from the exact classifier on the unconditional score."""
    x, t, cond = rows()
    exact = LabeledScore(noise_process)
    expected = scale * exact(x, t, cond) + (1 - scale) * exact(x, t)
    free = ClassifierFree(scale).guide(exact, cond)
    torch.testing.assert_close(free(x, t, cond), expected)
    unlabeled = MixtureScore(noise_process, MODES)
    guided = ClassifierGuidance(ExactClassifier(noise_process), scale).guide(unlabeled, cond)
    torch.testing.assert_close(guided(x, t, cond), expected, rtol=1e-6, atol=1e-8)
    alpha, sigma = broadcast_to(noise_process.alpha(t), x), broadcast_to(noise_process.sigma(t), x)
    torch.testing.assert_close(free.denoised(x, t, cond), (x + sigma**2 * expected) / alpha)


def test_one_batched_call_is_two_calls_and_counts_twice(noise_process):
    x, t, cond = rows()
    exact = LabeledScore(noise_process)
    ClassifierFree(2.0).guide(exact, cond)(x, t, cond)
    assert exact.calls == 1 and exact.evaluations == 2 * len(x)
    scalar = ClassifierFree(2.0).guide(exact, cond)(x, t[5], cond)
    torch.testing.assert_close(scalar, 2 * exact(x, t[5], cond) - exact(x, t[5]))


def test_scale_one_is_the_plain_score_at_its_plain_cost():
    exact = LabeledScore(VP())
    assert ClassifierFree(1.0).guide(exact, torch.arange(4)) is exact


def test_no_class_stays_unchanged():
    """Guiding to "no class" does nothing, with a classifier or without."""
    x, t, _ = rows()
    nothing = torch.full((len(x),), 3)
    for part in (ClassifierFree(3.0), ClassifierGuidance(ExactClassifier(VP()), 3.0)):
        torch.testing.assert_close(part.guide(LabeledScore(VP()), nothing)(x, t, nothing), LabeledScore(VP())(x, t))


def test_chain_applies_its_parts_in_their_order():
    """s(x) + 2 (s(x given y) - s(x)), and the classifier's gradient once more, make the closed form of scale 3."""
    x, t, cond = rows()
    exact = LabeledScore(VP())
    chain = Composed([ClassifierFree(2.0), ClassifierGuidance(ExactClassifier(VP()))])
    expected = 3 * exact(x, t, cond) - 2 * exact(x, t)
    torch.testing.assert_close(chain.guide(exact, cond)(x, t, cond), expected, rtol=1e-6, atol=1e-8)
    assert chain.labeled and chain.innermost


def test_a_guided_score_can_be_guided_by_an_observation():
    """The gradient goes through the classifier's: on a Gaussian of one class nothing changes but the observation."""
    x, t, cond = rows()
    observe = PseudoInverse(Mask([1, 0]), torch.tensor([[0.4]], dtype=torch.float64), data_std=0.5)
    exact = LabeledScore(VP())
    one = torch.ones_like(cond)
    chain = Composed([ClassifierGuidance(ExactClassifier(VP())), observe]).guide(MixtureScore(VP(), MODES), torch.arange(60))
    plain = observe.guide(Conditioned(exact, one), torch.arange(60))
    torch.testing.assert_close(chain(x, t, one), plain(x, t), rtol=1e-6, atol=1e-8)


def test_samples_of_scale_one_follow_the_class_and_larger_scales_leave_it():
    """The tilted law p_0 p(y given x)^scale is not what a larger scale gives, only its direction."""
    sampler = PredictorCorrector(EulerMaruyama(), grid=Uniform(200, 1e-3))
    means = {}
    for scale in (1.0, 4.0):
        cond = torch.ones(2000, dtype=torch.long)
        score = Conditioned(ClassifierFree(scale).guide(LabeledScore(VP()), torch.arange(2000)), cond)
        noise = NoiseStream(0, range(2000), [2], dtype=torch.float64)
        means[scale] = sampler(score, noise).x
    torch.testing.assert_close(means[1.0].mean(0), MODES.means[1], atol=0.05, rtol=0)
    torch.testing.assert_close(means[1.0].std(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.04, rtol=0)
    posterior = [ExactClassifier(VP())(x, torch.tensor(0.0)).softmax(-1)[:, 1].mean() for x in means.values()]
    assert posterior[1] > posterior[0] + 0.05


def model(guidance=None, conditional=True, label_dropout=0.25, num_classes=3, sampler=None):
    torch.manual_seed(0)
    made = ScoreModel(
        lambda shape, classes: MLP(shape, classes, width=16, depth=1),
        [2],
        VP(),
        sampler=sampler or PredictorCorrector(EulerMaruyama(), grid=Uniform(5)),
        num_classes=num_classes,
        conditional=conditional,
        label_dropout=label_dropout,
        guidance=guidance,
    )
    nn.init.normal_(made.score_function.network.linear_out.weight)  # as built, the network returns zero
    return made


def test_training_drops_labels_at_the_given_rate():
    seen = []

    class Spy(nn.Module):
        def forward(self, score, x, cond):
            seen.append(cond)
            return x.new_zeros(len(x))

    made, y = model(), torch.arange(30000) % 3
    made.objective = Spy()
    made.train().loss((torch.zeros(30000, 2), y))
    made.eval().loss((torch.zeros(30000, 2), y))
    dropped = (seen[0] == 3).float()
    assert abs(dropped.mean() - 0.25) < 4 * (0.25 * 0.75 / 30000) ** 0.5
    assert torch.equal(seen[0][dropped == 0], y[dropped == 0]) and torch.equal(seen[1], y)


def test_the_model_draws_with_its_guidance_and_counts_both_scores():
    plain, free = model(), model(ClassifierFree(2.0))
    cond = torch.tensor([0, 2, 2, 1])
    assert plain.draw(range(4), cond=cond).nfe == 5 and free.draw(range(4), cond=cond).nfe == 10
    assert not torch.allclose(plain.draw(range(4), cond=cond).x, free.draw(range(4), cond=cond).x, atol=1e-3)
    torch.testing.assert_close(free.draw(range(4)).x, free.draw(range(4), cond=torch.tensor([0, 1, 2, 0])).x)
    torch.testing.assert_close(free.draw([2, 3], cond=cond[2:]).x, free.draw(range(4), cond=cond).x[2:])


def test_a_classifier_guides_an_unconditional_model_under_inference_mode():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x, t):
            return self.linear(F.silu(torch.cat([x, t.unsqueeze(1)], 1)))

    guided = model(ClassifierGuidance(Linear(), 5.0), conditional=False, label_dropout=0.0)
    first, second = (guided.draw(range(4), cond=torch.full((4,), k)).x for k in (0, 1))
    assert (first - second).abs().max() > 1e-3 and not first.requires_grad


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClassifierFree(-1.0), "scale=-1.0.*0 .unconditional. or more"),
        (lambda: ClassifierFree(float("inf")), "scale=inf.*0 .unconditional. or more"),
        (lambda: model(ClassifierFree(2.0), label_dropout=0.0), "label_dropout=0.*label_dropout=0.1"),
        (lambda: model(ClassifierFree(2.0), conditional=False, label_dropout=0.0), "conditional=true"),
        (lambda: model(label_dropout=1.5), "label_dropout=1.5.*0 to 1"),
        (lambda: model(conditional=False), "label_dropout=0.25.*needs conditional=true"),
        (lambda: Composed([]), "at least one"),
        (lambda: Composed([ClassifierFree(2.0), ClassifierFree(2.0)]), "first part"),
        (lambda: model().draw([0], cond=torch.tensor([4])), r"labels \[4\].*0 to 2, or 3 for no class"),
        (lambda: model(label_dropout=0.0).draw([0], cond=torch.tensor([3])), r"labels \[3\].*0 to 2$"),
        (lambda: model().draw([0, 1], cond=torch.tensor([2])), "1 labels for 2 samples"),
        (lambda: model(conditional=False, label_dropout=0.0).draw([0], cond=torch.tensor([2])), "unconditional"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_scale_one_needs_no_label_dropout():
    assert model(ClassifierFree(1.0), label_dropout=0.0).draw([0, 1]).nfe == 5
