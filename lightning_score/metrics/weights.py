"""Files of published weights: given by path, by environment variable, or downloaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_score.errors import InputError, one_line


class WeightsFile(NamedTuple):
    """The file of the weights of a published network.

    Attributes:
        network: its name, for messages.
        owner: the class that takes the file as its option `weights`.
        variable: the environment variable that may hold its path.
        url: where it is published.
        sha256: its hash, if published.
    """

    network: str
    owner: str
    variable: str
    url: str
    sha256: str = ""

    @property
    def stored(self) -> Path:
        """Where a download is kept: in the folder of torch's hub, where torch-fidelity keeps its own."""
        return Path(torch.hub.get_dir(), "checkpoints", self.url.rpartition("/")[2])

    def find(self, given: str | None) -> Path:
        """The file: that given, that of the environment variable, or a download.

        Raises:
            OSError: it cannot be downloaded.
        """
        asked = given or os.environ.get(self.variable)
        if asked:
            return Path(asked)
        if not self.stored.exists():
            self.stored.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(self.stored), self.sha256 or None)
        return self.stored

    @contextmanager
    def explaining(self, given: str | None) -> Iterator[None]:
        """Within it, whatever is wrong with the file is an error that says where to get it and where to put it.

        Raises:
            InputError: in place of the error.
        """
        try:
            yield
        except Exception as error:  # of any network
            where = given or os.environ.get(self.variable) or f"{self.stored} (nor downloaded)"
            reason = ("KeyError: " if isinstance(error, KeyError) else "") + one_line(error)
            raise InputError(
                f"{self.network}'s weights could not be read from {where}: {reason}. Download {self.url} and give its path "
                f"as the option `weights` of {self.owner} or in the environment variable {self.variable}"
            ) from error
