"""The command `convert`: checkpoints of other projects to ours, and ours to a folder of diffusers."""

import lightning_score.lean_imports

import argparse
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn

import lightning_score
from lightning_score.commands.arguments import Arguments, Layer
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import load_checkpoint, trusted_modules, with_found_configs
from lightning_score.errors import InputError, one_line, require
from lightning_score.files import replacing
from lightning_score.interop import KINDS, Imported, read
from lightning_score.interop.base import OPTIONS, Settings, part
from lightning_score.interop.diffusers_writer import write
from lightning_score.training.model import ScoreModel

OURS = "lightning_score"
MEANINGS = {
    "sde": "the SDE, continuous or discrete, that the model was trained on; by default it follows from the folders' names",
    "precond": "the preconditioning under which the network was trained (default: edm)",
}


def convert(arguments: Arguments) -> None:
    """Converts a checkpoint and prints a description.

    Args:
        arguments: `convert` and its options.

    Raises:
        InputError: the file is of another kind, or the output exists.
    """
    options, changes = _parser().parse_known_args(arguments.words())
    out = Path(options.out)
    require(not out.exists(), f"{out}: already exists and is not overwritten; give another name")
    if options.kind == OURS:
        require(options.to == "diffusers", "--from lightning_score converts to a folder of diffusers: add --to diffusers")
        given = [f"--{name}" for name in ("size", *OPTIONS) if getattr(options, name) is not None]
        require(not given + changes, f"{' '.join(given + changes)}: --from lightning_score takes no further options")
        write(out, read_own_checkpoint(options.path, trusted_modules(arguments)))
    else:
        imported = read(options.path, options.kind, options.size, options.sde, options.precond)
        conversion = Conversion(imported, options.kind, changes)
        print(conversion.describe())
        if options.to == OURS:
            conversion.save(out)
        else:
            write(out, conversion.result())
    load = f"diffusers.DiffusionPipeline.from_pretrained('{out}')"
    predict = f"python -m lightning_score predict --ckpt_path {out} --num_samples 16"
    print(f"\nwritten to {out}; next: {predict if options.to == OURS else load}")


class Conversion(IdleExperiment):
    """Model and data of an imported checkpoint, made as by `fit`; options change what the file does not determine.

    Args:
        imported: the checkpoint.
        kind: its kind.
        changes: options that override what was read or assumed.
    """

    def __init__(self, imported: Imported, kind: str, changes: Sequence[str] = ()):
        self.imported, self.kind = imported, kind
        arguments = with_found_configs(Arguments.without_command(changes))
        super().__init__(arguments.over(Layer(config_of(imported, kind))))
        self.plain_config: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        weights = imported.weights if imported.averages is None else imported.averages
        try:
            self.model.score_function.network.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights do not fit the network that the options describe: {one_line(error)}") from error

    def describe(self) -> str:
        """The parts of the converted checkpoint, and what was assumed, as text."""
        score, imported, settings = self.model.score_function, self.imported, self.plain_config["model"]
        count = sum(parameter.numel() for parameter in score.network.parameters())
        low, high = self.datamodule.data_range
        averaged = "the averaged (EMA) and the raw weights" if imported.averages is not None else "the weights, no average"
        notes = "".join(f"\n  assumed: {note}" for note in imported.notes)
        return f"""\
{self.kind} checkpoint
  network        {type(score.network).__name__}, {count:,} parameters, {averaged}
  images         {" x ".join(map(str, self.model.shape))}, values {low:g} to {high:g}
  process        {_on_one_line(settings["process"])}
  output means   {_on_one_line(settings["parametrization"])}
  sampler        {_on_one_line(settings["sampler"])}
  trained        {imported.step or "an unknown number of"} steps{notes}"""

    def result(self) -> Imported:
        """The checkpoint with the changes by options."""
        return as_imported(self.model, self.plain_config["model"], self.datamodule.data_range)

    def save(self, out: Path) -> None:
        """Writes a checkpoint for `predict`, `test` and `fit`, atomically.

        The optimizer and the step count start anew; the average of the weights continues.
        """
        trainer = self.trainer
        trainer.strategy.connect(self.model)
        self.model.trainer = trainer
        trainer.state.fn = TrainerFn.FITTING
        trainer.strategy.setup_optimizers(trainer)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint["config"] = self.plain_config
        checkpoint["lightning_score_version"] = lightning_score.__version__
        checkpoint["converted"] = {"from": self.kind, "step": self.imported.step}
        if self.imported.averages is not None:
            raw = {f"score_function.network.{name}": tensor for name, tensor in self.imported.weights.items()}
            checkpoint["current_model_state"] = checkpoint["state_dict"] | raw
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.imported.step)}
        with replacing(out) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)


def config_of(imported: Imported, kind: str) -> dict[str, Any]:
    """The configuration of a run with the imported model, on CIFAR-10 or a folder of images that the user gives."""
    classes = imported.num_classes
    options: Settings = {"data_range": list(imported.data_range), "flip": True}
    data = part("CIFAR10", **options)
    if imported.shape != (3, 32, 32) or classes not in (0, 10):
        options |= {"num_classes": classes} if classes else {}
        data = part("ImageFolder", path="images", shape=list(imported.shape), **options)
    model = {**imported.model, "conditional": classes > 0, "label_dropout": imported.label_dropout}
    return {"name": kind, "model": model, "data": data}


def as_imported(model: ScoreModel, settings: Settings, data_range: Sequence[float]) -> Imported:
    """A model of this package, with its averaged weights, as a checkpoint to write in another form."""
    score, (low, high) = model.score_function, data_range
    images = len(model.shape) == 3 and (score.condition is None or score.num_classes > 0)
    require(images, f"shape={list(model.shape)}: only models of images, conditioned on classes or nothing, can be converted")
    channels, height, width = model.shape
    weights = score.network.state_dict()
    return Imported(settings, (channels, height, width), (low, high), weights, num_classes=score.num_classes)


def read_own_checkpoint(path: str, trusted: Collection[str] = ()) -> Imported:
    """A checkpoint of this package, to write in another form.

    Raises:
        InputError: it is unreadable, or its data have no range, like points.
    """
    config = load_checkpoint(path, trusted)["config"]
    data_range = config["data"].get("init_args", {}).get("data_range")
    require(data_range is not None, f"{path}: its data have no range; only models of images can be converted")
    model = ScoreModel.load_from_checkpoint(path, map_location="cpu", trust=list(trusted))
    return as_imported(model, config["model"], data_range)


def _on_one_line(settings: Any) -> str:
    """A part of a config on one line: its class and the arguments that are not null."""
    if not isinstance(settings, Mapping) or "class_path" not in settings:
        return str(settings)
    made: Any = locate(settings["class_path"])
    given = {name: value for name, value in (settings.get("init_args") or {}).items() if value is not None}
    order = [*inspect.signature(made).parameters, *given]
    inner = ", ".join(f"{name}={_on_one_line(given[name])}" for name in sorted(given, key=order.index))
    return f"{settings['class_path'].rpartition('.')[2]}{f'({inner})' if inner else ''}"


class _OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see convert --help")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(
        prog="python -m lightning_score convert",
        description="Converts another project's checkpoint for predict, test and fit, or to a folder of diffusers.",
        epilog="Options of fit change what the file does not determine: --model.process SubVP, "
        "--data ImageFolder --data.path my_images. No code in the files is run.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the file, or the folder for diffusers")
    parser.add_argument("out", metavar="OUT", help="the checkpoint to write, such as converted.ckpt; it must not exist")
    parser.add_argument("--from", dest="kind", required=True, choices=[*KINDS, OURS], help="kind of the checkpoint PATH")
    parser.add_argument("--size", type=int, help="height and width of the images in pixels, if they are not in the file")
    parser.add_argument("--trust", help="module whose classes a checkpoint of lightning_score may name, as my_parts")
    for name, (kind, values) in OPTIONS.items():
        parser.add_argument(f"--{name}", choices=values, help=f"only for {kind}: {MEANINGS[name]}")
    parser.add_argument("--to", default=OURS, choices=[OURS, "diffusers"], help="what to write (default: %(default)s)")
    return parser
