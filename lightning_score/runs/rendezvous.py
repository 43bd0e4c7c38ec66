"""Several processes of one run: what they agree on before they can talk, and what is said when one does not answer."""

import lightning_score.torchvision_guard  # noqa: F401

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import (
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lightning_score.errors import InputError
from lightning_score.stopping import cleaning

STARTERS = (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment)
"""Of processes beside this one, in Lightning's order."""
VARIABLE = "LIGHTNING_SCORE_FOLDER"  # tells the processes that this one starts the folder of the run
PORT_BESIDE = 10_000
"""Beyond the port at which the processes meet for good is that at which they agree on a folder."""
PATIENCE = timedelta(minutes=10)
"""For all processes to have started."""
GRACE = 10.0
"""Seconds in which the others may say why they end."""
GRACE_AFTER_SIGNAL = 3.0
"""The same where a signal ends all of them."""
SILENCE = re.compile(r"timed? ?out|connection (closed|reset|refused)|broken pipe|gloo|nccl|socket", re.IGNORECASE)

_runs = count()  # of this process
_meeting_points: list[dist.Store] = []  # stay open for as long as the process that serves them


class Rendezvous:
    """Where this process stands among those that torchrun, a cluster or a user started beside it, on any machines.

    Args:
        num_nodes: machines on which the user started a process each, where nothing else did.

    Attributes:
        rank: of this process among those that were started beside it.
        processes: how many these are; 1 where this one starts the others itself.
        alone: whether it was started as the only one of its kind.
    """

    def __init__(self, num_nodes: int = 1) -> None:
        self.rank, self.processes, self._address, self._port, self._served = 0, 1, "", 0, False
        found = next((kind() for kind in STARTERS if kind.detect()), None)
        if found is not None:
            self.rank, self.processes = found.global_rank(), found.world_size()
            self._served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
        elif num_nodes > 1 and "LOCAL_RANK" not in os.environ:
            found = LightningEnvironment()
            self.rank, self.processes = found.node_rank(), num_nodes
        self.alone = found is not None and self.processes == 1
        if self.processes > 1:
            self._address, self._port = found.main_address, found.main_port

    @property
    def attempt(self) -> int:
        """How often torchrun has started the processes again after one of them failed."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if self._served else 0

    def store(self) -> dist.Store:
        """Where all these processes can leave words for one another."""
        first = not _meeting_points
        if first:
            port = self._port if self._served else (self._port + PORT_BESIDE) % 65536
            self._meet(port, serves=self.rank == 0 and not self._served)
        store = dist.PrefixStore("lightning_score", _meeting_points[0])
        if first and self.attempt:
            self._meet_elsewhere(store)
        return store

    def _meet(self, port: int, serves: bool) -> None:
        _meeting_points.append(
            dist.TCPStore(self._address, port, is_master=serves, timeout=PATIENCE, wait_for_workers=False)
        )

    def _meet_elsewhere(self, store: dist.Store) -> None:
        """Has the processes meet for good at a store of the first of them. That of torchrun, the same at each start since
        PyTorch shares it with its own, still holds the addresses of processes that ended, and gloo would wait for these."""
        key = f"port/{self.attempt}"
        if self.rank == 0:
            self._meet(0, serves=True)
            store.set(key, str(_meeting_points[-1].port))
        os.environ["MASTER_PORT"] = store.get(key).decode()


def folder_of_all(make: Callable[[], str], num_nodes: int = 1) -> str:
    """The folder that the first process of a run makes, in every one of them: those that it starts itself and those that
    torchrun or SLURM start beside it, on other machines too.

    Args:
        make: makes it.
        num_nodes: number of machines.

    Raises:
        InputError: the first process did not start, or could not make it.
    """
    place = Rendezvous(num_nodes)
    if place.processes == 1:
        told = (
            os.environ.get(VARIABLE) if "LOCAL_RANK" in os.environ and not place.alone else None
        )  # by who started this one
        os.environ[VARIABLE] = told or make()
        return os.environ[VARIABLE]
    key = f"folder/{place.attempt}/{next(_runs)}"
    try:
        if place.rank == 0:
            place.store().set(key, make())
        os.environ[VARIABLE] = place.store().get(key).decode()
        return os.environ[VARIABLE]
    except dist.DistError as error:
        raise InputError(
            f"process {place.rank} of {place.processes}: the first process has not made its run folder within "
            f"{PATIENCE.total_seconds():.0f} s; see what it says, and whether this machine reaches it"
        ) from error


def folder_before() -> str | None:
    """The folder of the run whose processes torchrun starts again because one of them failed, if this is such a start."""
    place = Rendezvous()
    if place.attempt == 0:
        return None
    store = place.store()
    keys = [f"folder/{attempt}/0" for attempt in reversed(range(place.attempt))]
    return next((store.get(key).decode() for key in keys if store.check([key])), None)


@contextmanager
def answering(trainer: Trainer) -> Iterator[None]:
    """Names what happened when another process does not answer, and leaves none behind that would wait for this one.

    Raises:
        InputError: in place of the error of the library for communication.
    """
    try:
        with cleaning(lambda: _end_others(trainer, 0.0)):
            yield
    except (KeyboardInterrupt, SystemExit):
        _end_others(trainer, GRACE_AFTER_SIGNAL)
        raise
    except Exception as error:
        if trainer.world_size == 1:
            raise
        _end_others(trainer, GRACE)
        if isinstance(error, InputError) or not SILENCE.search(str(error)):
            raise
        timeout = getattr(trainer.strategy, "_timeout", None) or dist.default_pg_timeout
        strategy = type(trainer.strategy).__name__
        what = trainer.state.fn.value if trainer.state.fn else "start"
        raise InputError(
            f"process {trainer.global_rank} of {trainer.world_size}, {what}, step {trainer.global_step}: another process "
            "does not answer. Either it has ended, and says why above, or it takes longer than "
            f"{timeout.total_seconds():.0f} s (--trainer.strategy {strategy} --trainer.strategy.timeout allows more). "
            f"The library says: {' '.join(str(error).split())[:200]}"
        ) from error


def _end_others(trainer: Trainer, seconds: float) -> None:
    """Ends the processes that this one started, once they have had some seconds to say something."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    others = [process for process in started if isinstance(process, subprocess.Popen)]
    started.clear()  # or Lightning, which watches them, ends this process before it can say anything
    for process in others:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
