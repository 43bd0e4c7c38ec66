"""Samplers on, and between, the few noise levels that a model was trained at."""

import math
import warnings
from functools import partial

import pytest
import torch
from conftest import PREDICTORS, quick

from lightning_score import ScoreModel
from lightning_score.errors import InputError
from lightning_score.networks import MLP
from lightning_score.objective import DenoisingScoreMatching, FixedTimes, LogNormalTimes, TableTimes, TimeDistribution
from lightning_score.process import VE, BetaTable, SigmaTable
from lightning_score.sampling import (
    RK45,
    AnnealedLangevin,
    DPMSolver,
    Geometric,
    Karras,
    LangevinDynamics,
    NoPredictor,
    PredictorCorrector,
    ProbabilityFlow,
    ProcessTable,
    Snapped,
    StochasticHeun,
    Uniform,
)
from lightning_score.sampling.grid import distance_to_levels

LADDER = SigmaTable(0.03, 3.0, 10)


def warned(sampler, process=LADDER, times=None):
    """The warnings about a sampler of a model that was trained at the entries of a table, in Python as in all commands."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = DenoisingScoreMatching(times=times or TableTimes())
        model = ScoreModel(partial(MLP, width=8, depth=1), (2,), process, objective=objective, sampler=AnnealedLangevin())
        before = len(caught)
        model.use(sampler, None)
    messages = [str(warning.message) for warning in caught[before:]]
    return [message for message in messages if "noise levels only" in message or "one noise level only" in message]


@pytest.mark.parametrize("predictor", [p for p in PREDICTORS if p.evaluations], ids=lambda p: p.__name__)
def test_predictors_on_and_off_the_levels(predictor):
    leaves = predictor in (RK45, StochasticHeun, DPMSolver)  # whatever the grid
    for grid, off in [(Snapped(Karras(7)), False), (Geometric(9), False), (Karras(9), True), (Uniform(100, 1e-3), True)]:
        messages = warned(PredictorCorrector(quick(predictor), grid=grid))
        assert len(messages) == (off or leaves), (grid, messages)
    assert leaves or not warned(PredictorCorrector(quick(predictor), grid=ProcessTable(7)))


def test_the_message_names_cause_and_fix():
    (message,) = warned(PredictorCorrector(grid=Karras(9)))
    assert "PredictorCorrector on Karras: the model was trained at 10 noise levels only" in message
    assert "--model.sampler.grid ProcessTable" in message and "Snapped" in message
    assert len(warned(ProbabilityFlow())) == 1
    assert not warned(AnnealedLangevin(1e-5, 2)) and len(warned(AnnealedLangevin(1e-5, 2, Geometric(13)))) == 1
    assert not warned(PredictorCorrector(StochasticHeun(0.0), grid=Snapped()))
    assert not warned(PredictorCorrector(NoPredictor(), grid=Karras(9)))  # which sees no score


def test_fine_levels_and_continuous_training_are_silent():
    for process in (BetaTable(), SigmaTable(0.01, 50.0, 232)):
        assert not warned(PredictorCorrector(grid=Geometric(40)), process)
        assert not warned(ProbabilityFlow(), process)
    assert not warned(PredictorCorrector(grid=Karras(9)), times=LogNormalTimes())


def test_one_level():
    times = FixedTimes(0.1)
    assert not warned(LangevinDynamics(1e-4, 3, sigma=0.1), times=times)
    assert len(warned(LangevinDynamics(1e-4, 3, sigma=1.0), times=times)) == 1


def test_laws_of_times_know_their_levels():
    """A law has levels where it is discrete: as many times as it takes on many draws."""
    for law in concrete_laws():
        drawn = law.sample(LADDER, torch.zeros(2000, 1)).unique()
        levels = law.levels(LADDER)
        assert (levels is None) == (len(drawn) > 100)
        if levels is not None:
            torch.testing.assert_close(drawn, levels.to(drawn), rtol=1e-5, atol=0)


def concrete_laws():
    from lightning_score import objective

    kinds = [kind for kind in vars(objective).values() if isinstance(kind, type) and issubclass(kind, TimeDistribution)]
    return [kind(0.1) if kind is FixedTimes else kind() for kind in kinds if kind is not TimeDistribution]


def test_distance_is_that_of_the_logarithms():
    process = VE(0.01, 100.0)
    times = process.time_of(torch.tensor([0.1, 2.0, 10.0], dtype=torch.float64))
    levels = process.time_of(torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64))
    assert distance_to_levels(process, levels, times) == pytest.approx(math.log(2) / 3)
    assert distance_to_levels(LADDER, LADDER.table_times(), torch.zeros(1, dtype=torch.float64)) == 0


@pytest.mark.parametrize("process", [LADDER, BetaTable(), SigmaTable(0.1, 0.1, 1)], ids=["ladder", "chain", "one level"])
def test_snapped_takes_the_nearest_entries(process):
    entries = process.table_times()
    for grid in (Karras(7), Uniform(5), ProcessTable(min(6, len(entries)))):
        found, wanted = Snapped(grid)(process), grid(process)
        noisy = found[process.sigma(found) > 0]
        assert bool((found.diff() < 0).all()) and bool(torch.isin(noisy, entries).all())
        wanted = wanted[process.sigma(wanted) > 0]
        gaps = (process.log_snr(wanted)[:, None] - process.log_snr(noisy)).abs().amin(1)
        assert torch.equal(gaps, (process.log_snr(wanted)[:, None] - process.log_snr(entries)).abs().amin(1))
        assert bool((found[-1] == 0) == (grid(process)[-1] == 0))


@pytest.mark.parametrize(("grid", "levels"), [(Geometric(1, 0.95), 10), (Karras(3), 1)])
def test_snapped_times_that_are_all_one_are_refused(grid, levels):
    with pytest.raises(InputError, match="grid=Snapped: has 1 time, and so no step"):
        warned(PredictorCorrector(grid=Snapped(grid)), SigmaTable(0.03, 3.0, levels))
