"""The rendezvous of the processes of one run: they agree on a folder; a lost peer becomes an error that explains it."""

import lightning_score.lean_imports  # noqa: F401

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import environments
from torch.distributed import PrefixStore, Store, TCPStore

from lightning_score.errors import InputError, one_line
from lightning_score.stopping import cleaning

LAUNCHERS = (environments.TorchElasticEnvironment, environments.SLURMEnvironment, environments.LSFEnvironment,
             environments.MPIEnvironment)  # fmt: skip
"""Launchers of several processes, in Lightning's order."""
VARIABLE = "LIGHTNING_SCORE_FOLDER"  # hands the run folder to processes that this one starts
PORT_OFFSET = 10_000
"""Added to the main port for the rendezvous."""
TIMEOUT = timedelta(minutes=10)
"""Until all processes must have started."""
GRACE = 10.0
"""Seconds for other processes to print why they end."""
GRACE_AFTER_SIGNAL = 3.0
"""The same after a signal to all of them."""
LOST_PEER = re.compile(r"timed? ?out|connection (closed|reset|refused)|broken pipe|gloo|nccl|socket", re.IGNORECASE)

_runs = count()  # of this process
_stores: list[TCPStore] = []  # stay open as long as the process


class Rendezvous:
    """The rank of this process among those that torchrun, a cluster or a user started, and their common store.

    Args:
        num_nodes: machines on which the user started one process each, if no launcher did.

    Attributes:
        rank: of this process.
        processes: their number; 1 if this process starts the others itself.
        alone: whether a launcher started only this process.
    """

    def __init__(self, num_nodes: int = 1) -> None:
        self.rank, self.processes = 0, 1
        launched: ClusterEnvironment | None = next((kind() for kind in LAUNCHERS if kind.detect()), None)
        self._environment = launched or environments.LightningEnvironment()
        if launched is not None:
            self.rank, self.processes = launched.global_rank(), launched.world_size()
        elif num_nodes > 1 and "LOCAL_RANK" not in os.environ:
            self.rank, self.processes = self._environment.node_rank(), num_nodes
        self.alone = launched is not None and self.processes == 1
        self._served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun

    @property
    def attempt(self) -> int:
        """How often torchrun has restarted the processes after a failure."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if self._served else 0

    def store(self) -> Store:
        """The key-value store of these processes."""
        if not _stores:
            main = self._environment.main_port
            self._open_store(main if self._served else (main + PORT_OFFSET) % 65536, self.rank == 0 and not self._served)
            if self.attempt:
                self._move_process_group()
        return PrefixStore("lightning_score", _stores[0])

    def _open_store(self, port: int, serves: bool) -> None:
        address = self._environment.main_address
        _stores.append(TCPStore(address, port, is_master=serves, timeout=TIMEOUT, wait_for_workers=False))

    def _move_process_group(self) -> None:
        """Moves the process group to a store of rank 0. torchrun's store, which PyTorch reuses after a restart, still holds
        the addresses of ended processes, for which gloo would wait."""
        key, store = f"port/{self.attempt}", self.store()
        if self.rank == 0:
            self._open_store(0, serves=True)
            store.set(key, str(_stores[-1].port))
        os.environ["MASTER_PORT"] = store.get(key).decode()


def agree_on_folder(make: Callable[[], str], num_nodes: int = 1) -> str:
    """The folder that the first process of a run makes, in all of its processes, on any machine and by any launcher.

    Args:
        make: makes the folder.
        num_nodes: number of machines.

    Raises:
        InputError: the first process did not start, or could not make it.
    """
    rendezvous = Rendezvous(num_nodes)
    if rendezvous.processes == 1:
        started = "LOCAL_RANK" in os.environ and not rendezvous.alone  # by a process that has made the folder
        os.environ[VARIABLE] = (os.environ.get(VARIABLE) if started else None) or make()
        return os.environ[VARIABLE]
    key = f"folder/{rendezvous.attempt}/{next(_runs)}"
    try:
        if rendezvous.rank == 0:
            rendezvous.store().set(key, make())
        os.environ[VARIABLE] = rendezvous.store().get(key).decode()
        return os.environ[VARIABLE]
    except dist.DistError as error:
        raise InputError(
            f"process {rendezvous.rank} of {rendezvous.processes}: the first process has not made its run folder within "
            f"{TIMEOUT.total_seconds():.0f} s; see its output, and whether this machine reaches it"
        ) from error


def restarted_folder() -> str | None:
    """The folder of the run whose processes torchrun has restarted after a failure; None if it has not."""
    rendezvous = Rendezvous()
    keys = [f"folder/{attempt}/0" for attempt in reversed(range(rendezvous.attempt))]
    return next((rendezvous.store().get(key).decode() for key in keys if rendezvous.store().check([key])), None)


@contextmanager
def explain_lost_peer(trainer: Trainer) -> Iterator[None]:
    """Within it, an error because of another process explains that, and no process that this one started outlives it.

    Raises:
        InputError: instead of the error of the communication library.
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
        if isinstance(error, InputError) or not LOST_PEER.search(str(error)):
            raise
        timeout = getattr(trainer.strategy, "_timeout", None) or dist.default_pg_timeout
        strategy = type(trainer.strategy).__name__
        what = trainer.state.fn.value if trainer.state.fn else "start"
        raise InputError(
            f"process {trainer.global_rank} of {trainer.world_size}, {what}, step {trainer.global_step}: another process "
            "does not answer. Either it has ended, for the reason printed above, or it takes longer than "
            f"{timeout.total_seconds():.0f} s (--trainer.strategy {strategy} --trainer.strategy.timeout allows more). "
            f"The error: {one_line(error, 200)}"
        ) from error


def _end_others(trainer: Trainer, seconds: float) -> None:
    """Ends the processes that this one started, after some seconds for their output."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    others = [process for process in started if isinstance(process, subprocess.Popen)]
    started.clear()  # or Lightning, which watches them, would end this process before it prints its error
    for process in others:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
