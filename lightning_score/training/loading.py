"""Models from checkpoints, from folders that were passed on, and from the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from typing_extensions import Self

from lightning_score.errors import require
from lightning_score.runs.bundle import as_checkpoint_file, is_bundle
from lightning_score.runs.hub import download, name_on_hub
from lightning_score.runs.pretrained import find_checkpoint
from lightning_score.runs.trust import made_from


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
