"""Models from checkpoints, from folders that were passed on, and from the Hugging Face Hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from typing_extensions import Self

from lightning_score.errors import InputError, one_line, require
from lightning_score.guidance import OtherModel
from lightning_score.process import NoiseProcess
from lightning_score.runs.bundle import as_checkpoint_file, is_bundle
from lightning_score.runs.checkpoints import read_checkpoint
from lightning_score.runs.hub import download, name_on_hub
from lightning_score.runs.pretrained import find_checkpoint
from lightning_score.runs.trust import HOME, made_from
from lightning_score.seeds import seeded

if TYPE_CHECKING:
    from lightning_score.training.model import ScoreModel


class Loadable(LightningModule):
    """A module that is loaded without running code of the file."""

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *args: Any, trust: str | Sequence[str] = (), **kwargs: Any
    ) -> Self:
        """As Lightning's, but every byte is checked, no code is run, and other packages' modules need the user's `trust`.

        The path may also be that of the folder of a model that was passed on, or the name of a model in the package.
        """
        checkpoint_path = find_checkpoint(checkpoint_path)
        with made_from(checkpoint_path, cls, trust, kwargs) as made:
            source = as_checkpoint_file(checkpoint_path) if is_bundle(checkpoint_path) else checkpoint_path
            safe = {"_instantiator": None, "weights_only": True}  # also over what the checkpoint has under older names
            return super().load_from_checkpoint(source, *args, **{**made, **kwargs, **safe})

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, *, trust: str | Sequence[str] = (), **kwargs: Any
    ) -> Self:
        """A model in the package, in a folder that `pull` wrote, or on the Hub, for sampling; no code of it is run. What
        exists here is taken before a model of the same name on the Hub.

        Args:
            name: as `digits/ncsn`, the folder, or `user/name` on the Hub.
            revision: branch, tag or commit on the Hub; `main` by default.
            trust: modules of which its config may name classes.
            kwargs: of `load_from_checkpoint`, such as `map_location`.

        Raises:
            InputError: it cannot be had, or is damaged.
        """
        on_hub = name_on_hub(name)
        if not on_hub and (found := find_checkpoint(name)).exists():
            require(
                revision is None, f"revision={revision}: only a model on the Hub has one, and {found} is here; leave it out"
            )
        else:
            found = download(on_hub or str(name), revision)
        return cls.load_from_checkpoint(found, trust=trust, **kwargs).eval()


def other_model(model: "ScoreModel", path: str) -> OtherModel:
    """The score of another model for the samples of this one, in evaluation mode, with averaged weights.

    It may name classes of the modules that parts of this model come from, for these are trusted already.

    Args:
        model: the model, whose process, shape and condition the other one shares.
        path: a checkpoint or bundle, or the name of a model in the package or on the Hub.

    Raises:
        InputError: it cannot be loaded, or is of another process, shape or condition.
    """
    name = f"guidance.model={path}"
    try:
        stored = read_checkpoint(Path(path))
        made = stored.get("hyper_parameters", {}).get("_instantiator") is not None
        require(made, "its model was built in Python, whose parts a checkpoint does not hold; give one that fit has trained")
        kwargs = {"sampler": None, "guidance": None, "compile": model.compiled}
        with seeded(0):  # its weights as built are drawn before they are loaded
            other = type(model).load_from_checkpoint(path, trust=modules_of(model), **kwargs).eval().requires_grad_(False)
    except InputError as error:
        raise InputError(f"{name}: {one_line(error, 700)}; give another one, or set guidance: null") from error
    ours, score = model.score_function, other.score_function
    require(
        other.shape == model.shape,
        f"{name}: draws samples of shape {list(other.shape)}, not {list(model.shape)}; give another",
    )
    same = score.condition is None or (ours.condition is not None and score.condition.settings == ours.condition.settings)
    require(same, f"{name}: is given other conditions than this model; give one with the same conditions, or with none")
    require(
        alike(score.process, ours.process),
        f"{name}: its noise process ({type(score.process).__name__}) is another one than the model's "
        f"({type(ours.process).__name__}, or other parameters); give one that was trained with the same model.process",
    )
    return OtherModel(score, data_range_of(stored))


def modules_of(model: "ScoreModel") -> list[str]:
    """The modules of other packages that the parts of a model come from, and which are trusted therefore."""
    parts = (*model.modules(), model.objective, model.augmentation, model.score_function.parametrization)
    own = {type(part).__module__ for part in parts}
    return sorted(module for module in own if module.partition(".")[0] not in (*HOME, "builtins"))


def data_range_of(stored: Mapping[str, Any]) -> tuple[float, float] | None:
    """Lowest and highest value of the data that the model of a checkpoint was trained on; None if it holds none."""
    found: Any = stored
    for name in ("config", "data", "init_args", "data_range"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found and (found[0], found[1])


def alike(first: NoiseProcess, second: NoiseProcess) -> bool:
    """Whether two processes have the same alpha and sigma."""
    t = torch.linspace(0, 1, 129, dtype=torch.float64)
    return all(torch.allclose(a(t), b(t)) for a, b in ((first.alpha, second.alpha), (first.sigma, second.sigma)))
