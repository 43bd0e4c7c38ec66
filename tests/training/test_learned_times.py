"""The grid `Learned` of a model: learned when samples are drawn, cached by all that the times depend on, never stale."""

from functools import partial

import pytest
import torch

from lightning_score import MLP, VE, ScoreModel
from lightning_score.errors import InputError
from lightning_score.guidance import ClassifierFree
from lightning_score.objective import DenoisingScoreMatching, TableTimes
from lightning_score.process import SigmaTable
from lightning_score.sampling import (
    DDIM,
    RK45,
    DPMSolver2M,
    Heun,
    Karras,
    Learned,
    PredictorCorrector,
    Tweedie,
    exact_ends,
    learning,
)
from lightning_score.training import learned_times


@pytest.fixture(autouse=True)
def lessons(monkeypatch, cache):
    """How often times were learned, with few latents; in a cache of its own."""
    found = []

    def learn(*args, **settings):
        found.append(args)
        return learning.learn(*args, **settings)

    for module, name, value in ((exact_ends, "ROWS", 8), (exact_ends, "EXACT_STEPS", 20), (learning, "ITERATIONS", 2)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(learned_times, "learn", learn)
    return found


def sampler_of(predictor=None, grid=None, **settings):
    return PredictorCorrector(predictor or DPMSolver2M(), grid=grid or Learned(4), denoise=Tweedie(), **settings)


def model_of(sampler=None, seed=0, process=None, **settings):
    torch.manual_seed(seed)
    return ScoreModel(partial(MLP, width=16), (2,), process or VE(0.01, 10.0), sampler=sampler or sampler_of(), **settings)


def test_times_are_learned_once_and_kept(lessons):
    model = model_of()
    first = model.sample(3)
    assert model.score_function.evaluations == 3 * 5, "those of learning are not counted"
    grid = model.sampler.grid
    assert len(lessons) == 1 and len(grid.times) == 5 and grid.learned_for
    assert torch.equal(model.sample(3), first) and len(lessons) == 1
    other = model_of()
    assert torch.equal(other.sample(3), first) and len(lessons) == 1, "from the cache"
    assert other.sampler.grid.times == grid.times


@pytest.mark.parametrize(
    "change",
    [
        lambda: model_of(seed=1),
        lambda: model_of(sampler_of(Heun())),
        lambda: model_of(sampler_of(grid=Learned(3))),
        lambda: model_of(sampler_of(grid=Learned(4, 0.1))),
        lambda: model_of(sampler_of(clip=[-1.0, 1.0])),
        lambda: model_of(process=VE(0.01, 20.0)),
        lambda: model_of().double(),
    ],
    ids=["weights", "solver", "steps", "t_min", "clip", "process", "precision"],
)
def test_other_models_solvers_and_settings_learn_anew(change, lessons):
    model = model_of()
    model.sample(1)
    other = change()
    other.sample(1)
    assert len(lessons) == 2 and other.sampler.grid.learned_for != model.sampler.grid.learned_for


def test_changed_weights_learn_anew(lessons):
    model = model_of()
    model.sample(1)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.sample(1)
    assert len(lessons) == 2


def test_changed_code_learns_anew(lessons, monkeypatch):
    """The settings are the same, but the samples are not."""
    model_of(sampler_of(DDIM())).sample(1)
    step = DDIM.step
    monkeypatch.setattr(DDIM, "step", lambda self, score, x, *args: (1.1 * step(self, score, x, *args)[0], None))
    model_of(sampler_of(DDIM())).sample(1)
    assert len(lessons) == 2


@pytest.mark.parametrize("text", ["", "{}", '{"times": [1.0], "sizes": []}', '{"times": [1, 2, 3, 4, 5], "sizes": [1]}'])
def test_a_damaged_file_in_the_cache_is_replaced(text, cache, lessons):
    model_of().sample(1)
    (file,) = (cache / "lightning_score" / "learned_times").glob("*.json")
    good = file.read_text()
    file.write_text(text)
    model_of().sample(1)
    assert len(lessons) == 2 and file.read_text() == good


def test_the_times_of_another_model_or_solver_are_refused(lessons):
    model = model_of()
    model.sample(1)
    kept = {"times": model.sampler.grid.times, "learned_for": model.sampler.grid.learned_for}
    again = model_of(sampler_of(grid=Learned(4, **kept)))
    assert torch.equal(again.sample(2), model.sample(2))
    for other in (model_of(sampler_of(Heun(), Learned(4, **kept))), model_of(sampler_of(grid=Learned(4, **kept)), seed=1)):
        with pytest.raises(InputError, match=r"for another checkpoint or another solver.*--model\.sampler\.grid Learned"):
            other.sample(1)
    assert len(lessons) == 1


def test_levels_of_training_alone_are_used():
    process, objective = SigmaTable(0.02, 10.0, 8), DenoisingScoreMatching(times=TableTimes())
    model = model_of(process=process, objective=objective)
    model.sample(1)
    assert set(model.sampler.grid.times) <= set(process.table_times().tolist())
    with pytest.raises(InputError, match="steps=8: the model was trained at 8 levels; at most 7"):
        model_of(sampler_of(grid=Learned(8)), process=process, objective=objective)


def test_labels_in_turn_and_guidance_are_those_of_the_samples(lessons):
    settings = {"num_classes": 3, "conditional": True, "label_dropout": 0.1}
    plain = model_of(**settings)
    plain.sample(2)
    guided = model_of(guidance=ClassifierFree(3.0), **settings)
    guided.sample(2)
    draw = lessons[1][2]
    score, _ = draw(range(5))
    assert score.cond.tolist() == [0, 1, 2, 0, 1] and len(lessons) == 2
    assert guided.sampler.grid.learned_for != plain.sampler.grid.learned_for


def test_a_sampler_that_cannot_learn_is_refused_at_once():
    with pytest.raises(InputError, match=r"\(RK45\): chooses its own times"):
        model_of(sampler_of(RK45()))
    assert model_of(sampler_of(RK45(), Karras(1)))
