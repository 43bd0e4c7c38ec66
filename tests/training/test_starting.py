"""A training that starts from the weights of another model, which may not fit it."""

import warnings

import pytest

from lightning_score.cli import run

QUICK = ["fit", "--config=ect", "--trainer.fast_dev_run=true"]
NCSN = ["--model.start_from=digits/ncsn", "--data.data_range=[0,1]"]
DISTILL = ["--model.objective.distill=true"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NCSN[:1], r"was trained on data from (0.0, 1.0), and these are from (-1.0, 1.0); set data.data_range"),
        (
            [*NCSN, *DISTILL],
            "its noise process (SigmaTable) is another one than model.process; give the same with objective=",
        ),
        (DISTILL, "its parametrization (Noise, or its parameters) is another one than model.parametrization; give the same"),
        (
            [*DISTILL, "--model.start_from=null"],
            "objective=ConsistencyTuning: improves a trained model; give its checkpoint",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*QUICK, *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_another_process_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(
        UserWarning, match=r"its noise process \(SigmaTable\) is another one than model.process \(BetaTable\)"
    ):
        assert run([*QUICK, *NCSN]) == 0


def test_a_model_starts_from_itself_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as found:
        assert run([*QUICK, *DISTILL, "--model.parametrization=Noise"]) == 0
    assert not [each for each in found if "start_from" in str(each.message)]
