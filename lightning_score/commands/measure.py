"""The command `evaluate`: measures samples that any program drew, as `test` measures those of a model."""

import lightning_score.lean_imports  # noqa: F401

import hashlib
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from lightning_score.callbacks import Evaluate
from lightning_score.callbacks.distances import measures
from lightning_score.callbacks.pictures import sample_picture
from lightning_score.callbacks.sampling_pass import Source
from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.class_names import class_names
from lightning_score.commands.configs import find_config, read_config
from lightning_score.commands.mistakes import make_paths_absolute
from lightning_score.commands.parser import Parser
from lightning_score.commands.refusals import TRAINER_DEFAULTS
from lightning_score.commands.summary import print_evaluation
from lightning_score.data import ScoreData
from lightning_score.data.sample_files import read_samples
from lightning_score.errors import require
from lightning_score.files import replace_text
from lightning_score.metrics import Features
from lightning_score.runs.console import write_console
from lightning_score.runs.folders import check_name, new_dated_folder, new_folder
from lightning_score.runs.status import recording
from lightning_score.runs.wandb_logger import RunCSVLogger
from lightning_score.sampling import Samples

OPTIONS = ("features", "distances", "reference", "batch_size", "fid_infinity", "neighbors")
"""The parameters of `Evaluate` that concern samples without a model."""


class GivenSamples(Source):
    """Samples 0 to N - 1 that another program drew, of any seed.

    Args:
        samples: in the form of the data's `reference()`, (N, *shape).
        data: the data.
        origin: where they are from.
        device: where they are measured.
    """

    weights = "given"
    evaluations = 0

    def __init__(self, samples: Tensor, data: ScoreData, origin: str, device: torch.device | str = "cpu") -> None:
        self.samples, self.data, self.origin, self.device = samples, data, origin, device

    def draw(self, numbers: Sequence[int], seed: int) -> Samples:
        found = self.samples[torch.as_tensor(numbers)].to(self.device)
        return Samples(found, found, 0.0, None)

    def to_reference(self, x: Tensor) -> Tensor:
        return x

    @property
    def settings(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "file": self.origin, "hash": self.digest(len(self.samples))[:16]}

    def digest(self, n: int) -> str:
        return hashlib.sha256(self.samples[:n].contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()

    def picture(self, samples: Tensor) -> Image.Image:
        return sample_picture(self.data, samples)


class NoModel(LightningModule):
    """Takes the place of a model in a test that measures given samples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def test_step(self, *batch: Any) -> None:
        """Does nothing."""


def evaluate(arguments: Arguments) -> None:
    """Measures samples of a folder, zip or NPZ; writes and prints records as `test` does.

    Args:
        arguments: `evaluate` and its options.

    Raises:
        InputError: an option is wrong, or the samples do not fit the data.
    """
    parser, given = _parser(), _over_configs(arguments)
    known = {option.name for option in given.options} | {f"--{name}" for layer in given.layers for name in layer.config}
    needed = "evaluate needs samples and the data that they are compared with: evaluate samples.npz --data Digits"
    require(arguments.asks_for_help or {"", "--data"} <= known, f"{needed}, or --config ncsn")
    config = parser.parse_args(given)
    samples, name = Path(config.samples), config.name or Path(config.samples).stem
    check_name(name, "--name")
    make_paths_absolute(config, {"evaluate": Evaluate})
    made = parser.instantiate_classes(config)
    data: ScoreData = made.data
    found = read_samples(samples, data)
    n = len(found) if made.num_samples is None else made.num_samples
    require(2 <= n <= len(found), f"--num_samples {n}: must be from 2 to {len(found)}, the number of samples in {samples}")
    callback = Evaluate(num_samples=n, **vars(made.evaluate))
    _check(callback, data, n, samples)
    folder = new_folder(Path(made.output)) if made.output else new_dated_folder(Path("runs") / name / "evaluate")
    replace_text(folder / "config.yaml", parser.dump(config))
    write_console(folder)
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "limit_test_batches": 1}
    settings = {**TRAINER_DEFAULTS, **quiet, "logger": RunCSVLogger(folder), "default_root_dir": folder}
    trainer = Trainer(devices=1, callbacks=[callback], **settings)
    callback.given = GivenSamples(found[:n], data, str(samples.absolute()), trainer.strategy.root_device)
    with recording(folder, arguments.command_line(), lambda: 0):
        trainer.test(NoModel(), datamodule=data, verbose=False)
        print_evaluation(trainer, folder)


def _check(callback: Evaluate, data: ScoreData, n: int, samples: Path) -> None:
    """Raises `InputError` unless something is measured, and n samples are enough for it."""
    choices = f"one or several of {class_names(Features)}"
    require(measures(callback, data), f"--evaluate.features: nothing is measured of images without them; give {choices}")
    callback.check(data)
    for features in callback.features:
        least = 2 if "cmmd" in features.measured else features.num_features + 1
        few = f"{features.name} has {features.num_features} features, and from fewer samples their distance is only bias"
        require(n >= least, f"{samples}: {n} samples; give at least {least}: {few}")


def _over_configs(arguments: Arguments) -> Arguments:
    """The options over the data and measures of configs, which may be those of `fit`."""
    layers = []
    for file in arguments.get(CONFIG):
        config: Any = read_config(find_config(file))
        chosen = {name: value for name, value in (config.get("evaluate") or {}).items() if name in OPTIONS}
        layers.append(Layer({name: config[name] for name in ("data",) if name in config} | {"evaluate": chosen}, file))
    return arguments.drop(CONFIG).over(*reversed(layers))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m lightning_score evaluate",
        description="Measures samples that any program drew: distances with errors and floors, precision, recall, copies.",
    )
    samples = "A folder or zip of images, or an NPZ or NPY with images, arr_0 or x."
    parser.add_argument("samples", type=str, help=samples)
    parser.add_argument("-c", "--config", type=str, help="A config whose data and measures are used, as ncsn.")
    parser.add_subclass_arguments(ScoreData, "data", required=False, help="The data that samples are compared with.")
    of_models = {*signature(Evaluate).parameters} - {*OPTIONS}
    parser.add_class_arguments(Evaluate, "evaluate", skip=of_models, instantiate=False)
    parser.add_argument("--num_samples", type=int | None, default=None, help="How many samples; all by default.")
    parser.add_argument("--name", type=str | None, default=None, help="Name of the results; that of the file by default.")
    parser.add_argument("--output", type=str | None, default=None, help="A new folder; by default in runs/NAME/evaluate.")
    return parser
