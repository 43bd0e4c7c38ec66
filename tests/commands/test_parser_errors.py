"""Errors of the parser: they name the option in full, the file and line of its value, and what may be given."""

from pathlib import Path

import pytest
from jsonargparse._typehints import get_help_types

from lightning_score.cli import run
from lightning_score.errors import InputError
from lightning_score.sweep.loaded import ParsedCommand

OPTIONS = [
    ("ncsn", "Did you mean --config ncsn?"),
    ("last.ckpt", "Did you mean --ckpt_path last.ckpt?"),
    ("--max_steps 5", "Did you mean --trainer.max_steps?"),
    ("--batch_size=3", "Did you mean --data.batch_size"),
    ("--lr=3", "Did you mean --model.optimizer.lr?"),
    ("--step_size=3", "Did you mean --model.sampler.step_size?"),
    ("--trainer.max_step=3", "Did you mean --trainer.max_steps?"),
    ("--model.sampler.step_siz=3", "Did you mean --model.sampler.step_size?"),
    ("--model.sampler.grid=Geometric --model.sampler.grid.step=3", "Did you mean --model.sampler.grid.steps?"),
    ("--model.sampler.steps=x", "model.sampler.steps=x: must be a whole number"),
    ("--model.lr_scheduler=LinearLRR", "model.lr_scheduler=LinearLRR: no such class; give one of LinearLR, "),
    ("--model.lr_scheduler=ReduceLROnPlateau", "cannot be imported (Multiple subclasses with name ReduceLROnPlateau"),
    ("--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau", "follows a metric, but is stepped after every"),
    ("--trainer.max_steps=0", "--trainer.max_steps 0: must be at least 1, or -1"),
    ("--trainer.devices=0", "--trainer.devices 0: must be at least 1, or auto"),
    ("--model.optimizer=adam", "model.optimizer=adam: no such class; give one of Adam, "),
    ("--model.optimizer=torch.optim.Adan", "model.optimizer=torch.optim.Adan: cannot be imported"),
    ("--model.sampler=lightning_score.VP", "model.sampler=lightning_score.VP: not a Sampler; give one of Annealed"),
    ("--trainer.callbacks=LosFloor", "trainer.callbacks=LosFloor: no such class; give one of LossFloor, "),
    ("--trainer.callbacks=[LosFloor]", "trainer.callbacks=LosFloor: no such class; give one of LossFloor, "),
    ("--trainer.callbacks=[{class_path: LossFloor, levels: 3}]", "trainer.callbacks.levels: must be inside init_args"),
    ("--model.process={class_path: VP, class_path: VE}", "class_path is given twice"),
    (
        "--model.process=NoiseProcess",
        "model.process=NoiseProcess: abstract, without log_alpha and sigma; give",
    ),
    ("--data=ImageData", "data=ImageData: abstract, without load; give one of "),
    ("--model.lr_scheduler=StepLR", "model.lr_scheduler: needs step_size; give --model.lr_scheduler.step_size"),
    (
        "--trainer.callbacks=EarlyStopping",
        "trainer.callbacks: needs monitor; give --trainer.callbacks.monitor",
    ),
    ("--model.guidance=Inpainting", "model.guidance: needs observed, mask; give --model.guidance.observed"),
    ("--trainer.foo=3", "--trainer.foo=3"),
    ("--evaluate=null", "evaluate=null: must be a YAML file of options; for one of them, --evaluate.NAME"),
    ("--model.process.sigma_max=.nan", "model.process.sigma_max=nan: must be a number"),
    ("--model.start_from=nosuch.ckpt", "start_from=nosuch.ckpt: nosuch.ckpt: there is no such file"),
    (
        "--trainer.callbacks=ModelCheckpoint --trainer.logger=false",
        "more than one stateful callback of type",
    ),
    ("--trainer.callbacks=EMAWeightAveraging --trainer.logger=false", "--trainer.callbacks: weight_averaging: "),
    ("--model.lr_scheduler=ConstantLR --model.lr_scheduler.last_epoch=5", "'initial_lr' is not specified"),
    ("--trainer.limit_train_batches=0", "--trainer.limit_train_batches 0: must be above 0, or nothing is learned"),
    ("--trainer.overfit_batches=2", "--trainer.overfit_batches 2: not for these data, whose batches"),
    (
        "--model.guidance.scale=3",
        "model.guidance.scale=3: of which class? Give model.guidance first, one of Autoguidance",
    ),
    ("--model.sampler.help Foo", "--model.sampler.help Foo: no such class; give one of AnnealedLangevin, "),
    ("--model.optimizer.help Adm", "--model.optimizer.help Adm: no such class; give one of Adam, "),
    ("--evaluate.neighbours=3", "evaluate.neighbours: this option has been renamed; give --evaluate.neighbors"),
    (
        "--data=ImageFolder --data.grey_range=[0,1]",
        "data.grey_range: this option has been renamed; give --data.gray",
    ),
    ("--model.sampler.grid=Table", "model.sampler.grid=Table: this class has been renamed; give ProcessTable"),
    ("--model.process=Chain", "model.process=Chain: this class has been renamed; give BetaChain"),
    ("--model.guidance=Chain", "model.guidance=Chain: this class has been renamed; give Composed"),
    ("--seed_everything 12345678901234567890", "a whole number from 0 to 4294967295"),
    ("--evaluate.seed 12345678901234567890", "evaluate.seed=12345678901234567890: too large"),
    (
        "--model.sampler=PredictorCorrector --model.sampler.predictor=DPMSolver --model.sampler.predictor.order=5",
        "error: order=5: must be 2 or 3",
    ),
    (
        "--model.sampler=PredictorCorrector --model.sampler.predictor=Restart --model.sampler.predictor.repeats=0",
        "error: repeats=0: need at least one",
    ),
    (
        "--model.sampler=PredictorCorrector --model.sampler.predictor=Restart --model.sampler.predictor.sigma_max=9",
        "error: sigma_max=9: SigmaTable does not have this noise level (sigma/alpha); the nearest is 3",
    ),
    ("--model.network.embedding.seed 12345678901234567890", "model.network.embedding.seed=12345678901234567890: too large"),
]
FILES = [
    ("model:\n  sampler:\n    init_args:\n      stepz: 5\n", "model.sampler.stepz", 4),
    ("model:\n  samplerr:\n    init_args: {stepz: 5}\n", "model.samplerr", 3),
    ("trainer:\n  max_steps: x\n", "trainer.max_steps=x: must be a whole number", 2),
    ("model:\n  process:\n    init_args:\n      sigma_min: abc\n", "model.process.sigma_min=abc: must be a number", 4),
    ("model:\n  process:\n    init_args:\n      sigma_min: 50\n", "sigma_min=50", 4),
    ("model:\n  process:\n    class_path: SigmaTable\n    levels: 3\n", "model.process.levels: must be inside init_args", 4),
    ("evaluate:\n  neighbours: 3\n", "evaluate.neighbours: this option has been renamed", 2),
    ("model:\n  sampler:\n    init_args: {grid: Table}\n", "model.sampler.grid=Table: this class has been renamed", 3),
    ("model:\n  process: Vp\n", "model.process=Vp: no such class; give one of VP, ", 2),
    ("model:\n  guidance: {scale: 3}\n", "of which class? Give model.guidance first", 2),
    ("model:\n  process:\n    class_path: VP\n    init_args:\n", "model.process.init_args: null: must hold arguments", 2),
    ("model:\n  process:\n    class_path: 7\n", "model.process.class_path: 7: must be the name of a class", 2),
    ("data:\n  init_args:\n    batch_size: 1:30\n", "data.batch_size=1:30: must be a whole number", 3),
    ("data:\n  init_args: {flip: yes}\n", "data.flip=yes: must be true or false", 2),
]


def refusal(arguments, capsys):
    try:
        code = run(arguments)
    except SystemExit as stop:
        code = stop.code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 2
    return line


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_options(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = options.split() if "{" not in options else [options]
    line = refusal(["fit", "--config", "ncsn", *given], capsys)
    assert words in line and "yaml" not in line, line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "words", "number"), FILES, ids=[words for _, words, _ in FILES])
def test_values_of_files(content, words, number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(content)
    line = refusal(["fit", "--config", "ncsn", "--config", "own.yaml"], capsys)
    assert words in line and line.endswith(f"(own.yaml, line {number})"), line


def test_an_option_is_not_blamed_on_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "yaml" not in refusal(["fit", "--config", "ncsn", "--model.process.sigma_min=50"], capsys)


def test_every_option_that_takes_a_class_lists_the_classes(capsys):
    command = ParsedCommand(["fit", "--config", "ncsn"])
    places = [
        a.dest
        for a in command.cli.parser._actions
        if get_help_types(getattr(a, "_typehint", None)) and not a.dest.endswith(".help")
    ]
    text = {"trainer.accelerator", "trainer.strategy", "trainer.profiler", "trainer.plugins"}
    assert {"model.process", "model.optimizer", "model.lr_scheduler", "trainer.callbacks", "data"} <= set(places)
    for place in set(places) - text:
        with pytest.raises(InputError, match=rf"^{place}=Nosuch: no such class; give one of \w+"):
            command.parse(["fit", "--config", "ncsn", f"--{place}=Nosuch"])
        with pytest.raises(InputError, match=rf"^--{place}.help Nosuch: no such class; give one of \w+"):
            command.parse(["fit", "--config", "ncsn", f"--{place}.help", "Nosuch"])


@pytest.mark.slow
def test_one_callback_needs_no_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.fast_dev_run=true", "--evaluate.features=null", "--samples.num_samples=0"]
    assert run(["fit", "--config", "toy", "--trainer.callbacks", "LossFloor", *options]) == 0
