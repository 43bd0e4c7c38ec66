"""The command `convert`: peers' checkpoints become ours, and ours a folder of diffusers."""

import lightning_score.torchvision_guard

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
from lightning_score.commands.base import IdleExperiment
from lightning_score.commands.configs import load_checkpoint, with_found_configs
from lightning_score.errors import InputError, require
from lightning_score.files import replacing
from lightning_score.interop import KINDS, Imported, read
from lightning_score.interop.base import OPTIONS, Settings
from lightning_score.interop.diffusers_writer import write
from lightning_score.runs.trust import trusted_by
from lightning_score.training.model import ScoreModel

OURS = "lightning_score"
MEANINGS = {
    "sde": "what the model was trained on, in continuous time or on discrete levels; by default the folders' names say",
    "precond": "the preconditioning under which the network was trained (default: edm)",
}
NEXT = {
    OURS: "python -m lightning_score predict --ckpt_path {out} --num_samples 16",
    "diffusers": "diffusers.DiffusionPipeline.from_pretrained('{out}')",
}


def convert(arguments: list[str]) -> None:
    """Converts a checkpoint and says what it became.

    Args:
        arguments: `convert` and its options.

    Raises:
        InputError: a file that is not of the kind named, or an output that exists.
    """
    options, changes = _parser().parse_known_args(arguments[1:])
    out = Path(options.out)
    require(not out.exists(), f"{out}: exists already and nothing is overwritten; give another name")
    if options.kind == OURS:
        require(options.to == "diffusers", "--from lightning_score converts to a folder of diffusers: add --to diffusers")
        said = [f"--{name}" for name in ("size", *OPTIONS) if getattr(options, name) is not None]
        require(not said + changes, f"{' '.join(said + changes)}: --from lightning_score takes no further options")
        write(out, own(options.path, trusted_by(arguments, [])))
    else:
        imported = read(options.path, options.kind, options.size, options.sde, options.precond)
        conversion = Conversion(imported, options.kind, with_found_configs(changes))
        print(conversion.describe())
        if options.to == OURS:
            conversion.save(out)
        else:
            write(out, conversion.result())
    print(f"\nwritten to {out}; next: {NEXT[options.to].format(out=out)}")


def convert_checkpoint(path: str | Path, kind: str, out: str | Path, options: Sequence[str] = ()) -> None:
    """Converts a peer's checkpoint into one of this package's, as the command does.

    Args:
        path: the peer's file or folder.
        kind: whose it is, one of `lightning_score.interop.KINDS`.
        out: the checkpoint to write; it must not exist.
        options: as on the command line, such as `["--model.process", "SubVP"]`.
    """
    convert(["convert", "--from", kind, str(path), str(out), *options])


class Conversion(IdleExperiment):
    """Model and data of an imported checkpoint, made as `fit` makes them, so that options change what the file leaves open.

    Args:
        imported: the checkpoint.
        kind: whose it is.
        changes: options that override what was found or assumed.
    """

    def __init__(self, imported: Imported, kind: str, changes: Sequence[str] = ()):
        self.imported, self.kind = imported, kind
        base = yaml.safe_dump(config_of(imported, kind))
        super().__init__(["--config", base, *changes])
        self._load()

    def _load(self) -> None:
        """Gives the model the weights: the averaged ones, if there are any."""
        network, imported = self.model.score_function.network, self.imported
        try:
            network.load_state_dict(imported.weights if imported.averages is None else imported.averages)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:300]
            raise InputError(f"the weights do not fit the network that the options describe: {detail}") from error

    def describe(self) -> str:
        """What the checkpoint became, and what was assumed, as a text."""
        score, imported, settings = self.model.score_function, self.imported, self.plain_config()["model"]
        count = sum(parameter.numel() for parameter in score.network.parameters())
        low, high = self.datamodule.data_range
        averaged = "the averaged (EMA) and the raw weights" if imported.averages is not None else "the weights, no average"
        rows = {
            "network": f"{type(score.network).__name__}, {count:,} parameters, {averaged}",
            "images": f"{' x '.join(map(str, self.model.shape))}, values {low:g} to {high:g}",
            "process": _said(settings["process"]),
            "output means": _said(settings["parametrization"]),
            "sampler": _said(settings["sampler"]),
            "trained": f"{imported.step} steps" if imported.step else "the file does not say how long",
        }
        lines = [f"  {name:<14} {value}" for name, value in rows.items()]
        return "\n".join([f"{self.kind} checkpoint", *lines, *(f"  assumed: {note}" for note in imported.notes)])

    def plain_config(self) -> dict[str, Any]:
        """The configuration with plain values only."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def result(self) -> Imported:
        """The checkpoint with what the options have changed."""
        return as_imported(self.model, self.plain_config()["model"], self.datamodule.data_range)

    def save(self, out: Path) -> None:
        """Writes a checkpoint from which `predict`, `test` and `fit` go on, in one step that is never seen half done.

        The optimizer starts anew and training counts from 0; the average goes on from the peer's.
        """
        trainer = self.trainer
        trainer.strategy.connect(self.model)
        self.model.trainer = trainer
        trainer.state.fn = TrainerFn.FITTING
        trainer.strategy.setup_optimizers(trainer)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint["config"] = self.plain_config()
        checkpoint["lightning_score_version"] = lightning_score.__version__
        checkpoint["converted"] = {"from": self.kind, "step": self.imported.step}
        if self.imported.averages is not None:
            checkpoint["current_model_state"] = self._named(checkpoint["state_dict"], self.imported.weights)
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.imported.step)}
        with replacing(out) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)

    def _named(self, state: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
        """A model's state with other weights of its network."""
        return {**state, **{f"score_function.network.{name}": tensor for name, tensor in weights.items()}}


def config_of(imported: Imported, kind: str) -> dict[str, Any]:
    """The configuration of a run whose model is the imported one, on the data that have its shape."""
    conditional = imported.num_classes > 0
    model = {**imported.model, "conditional": conditional, "label_dropout": imported.label_dropout}
    return {"name": kind, "model": model, "data": data_of(imported)}


def data_of(imported: Imported) -> dict[str, Any]:
    """Data of the shape that the model was trained on: CIFAR-10, or a folder of images to be named."""
    shared = {"data_range": list(imported.data_range), "flip": True}
    if imported.shape == (3, 32, 32) and imported.num_classes in (0, 10):
        return {"class_path": "CIFAR10", "init_args": shared}
    classes = {"num_classes": imported.num_classes} if imported.num_classes else {}
    return {"class_path": "ImageFolder", "init_args": {"path": "images", "shape": list(imported.shape), **shared, **classes}}


def as_imported(model: ScoreModel, settings: Settings, data_range: Sequence[float]) -> Imported:
    """A model of this package, with the averaged weights that it holds, as a checkpoint to be written in another form."""
    score = model.score_function
    low, high = data_range
    return Imported(settings, model.shape, (low, high), score.network.state_dict(), num_classes=score.num_classes)


def own(path: str, trusted: Collection[str] = ()) -> Imported:
    """A checkpoint of this package as one to be written in another form.

    Raises:
        InputError: it is unreadable, or of data without a range, such as points.
    """
    config = load_checkpoint(path, trusted)["config"]
    data_range = config["data"].get("init_args", {}).get("data_range")
    require(data_range is not None, f"{path}: a model of data without a range; only models of images can be converted")
    model = ScoreModel.load_from_checkpoint(path, map_location="cpu", trust=list(trusted))
    return as_imported(model, config["model"], data_range)


def _said(settings: Any) -> str:
    """A part of a config on one line: its class and what differs from null."""
    if not isinstance(settings, Mapping) or "class_path" not in settings:
        return str(settings)
    given = {name: value for name, value in (settings.get("init_args") or {}).items() if value is not None}
    order = [*inspect.signature(locate(settings["class_path"])).parameters, *given]
    inner = ", ".join(f"{name}={_said(given[name])}" for name in sorted(given, key=order.index))
    return f"{settings['class_path'].rpartition('.')[2]}{f'({inner})' if inner else ''}"


class _OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see convert --help")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(
        prog="python -m lightning_score convert",
        description="Makes a peer's checkpoint one of this package, for predict, test and fit, or a folder of diffusers.",
        epilog="Further options change what the file leaves open, as those of fit: --model.process SubVP, "
        "--data ImageFolder --data.path my_images. Files are read without running code that they may hold.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the peer's file, or its folder for diffusers")
    parser.add_argument("out", metavar="OUT", help="the checkpoint to write, such as converted.ckpt; it must not exist")
    parser.add_argument("--from", dest="kind", required=True, choices=[*KINDS, OURS], help="whose checkpoint PATH is")
    size = "height and width of the images in pixels, where the file does not say; by default those of the published models"
    parser.add_argument("--size", type=int, help=size)
    parser.add_argument("--trust", help="module of which a checkpoint of lightning_score may name classes, as my_parts")
    for name, (kind, values) in OPTIONS.items():
        parser.add_argument(
            f"--{name}", choices=values, help=f"of {kind} alone, where its file does not say: {MEANINGS[name]}"
        )
    parser.add_argument("--to", default=OURS, choices=[OURS, "diffusers"], help="what to write (default: %(default)s)")
    return parser
