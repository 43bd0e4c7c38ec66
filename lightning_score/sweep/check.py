"""What can be found wrong with a sweep before its first trial."""

import lightning_score.torchvision_guard  # noqa: F401

import difflib
from pathlib import Path

from lightning_score.callbacks.totals import KINDS
from lightning_score.metrics.record import metric_name
from lightning_score.sweep.loaded import LoadedCommand, ParsedCommand
from lightning_score.sweep.spec import Sweep
from lightning_score.sweep.trials import arguments_of
from lightning_score.utils import InputError, require

NOWHERE = Path("trial")
NAMING = ("evaluate.num_samples", "evaluate.features")
"""Settings that change the name of what is measured."""


def check_settings(sweep: Sweep) -> None:
    """Gives every value of every parameter to the command line's own parser.

    Raises:
        InputError: the first that it refuses.
    """
    command: ParsedCommand | None = None
    for name, value, settings in sweep.examples():
        arguments = arguments_of(sweep, settings, NOWHERE)
        try:
            if command is None:
                command = ParsedCommand(arguments)
            command.parse(arguments)
        except InputError as error:
            raise InputError(f"sweep {sweep.name}: {name}={value!r}: {error}") from error


def check_metric(sweep: Sweep, command: LoadedCommand) -> None:
    """Asks whether the trials will log the metric.

    Args:
        sweep: the sweep.
        command: of its first trial.

    Raises:
        InputError: they will not; callbacks of the user's own may log what they like.
    """
    metric = sweep.metric
    naming = [name for name in sweep.varied if name.startswith(NAMING)]
    if metric is None or command.config[command.command]["trainer"]["callbacks"]:
        return
    require(not naming, f"{', '.join(naming)}: varies, and with it the metric's name; hold it fixed")
    known = logged(command)
    near = difflib.get_close_matches(metric, known, 1, 0.3)
    hint = f"; did you mean {near[0]}?" if near else f"; it logs {', '.join(sorted(known))}"
    require(metric in known, f"metric {metric}: nobody logs it in `{command.command}`{hint}")


def logged(command: LoadedCommand) -> set[str]:
    """The names of all that a command may log without callbacks of the user's own."""
    prefix = "test" if command.command == "test" else "val"
    names = {f"{prefix}/loss", *({"train/loss", "train/lr"} if command.command == "fit" else ())}
    evaluate = command.evaluate
    if evaluate.features is None:
        return names
    every = prefix == "test" or evaluate.thorough
    endings = ["", *(["_noisy"] if evaluate.noisy else [])]
    endings += [f"{ending}_raw_weights" for ending in endings] if evaluate.raw_weights else []
    for kind in KINDS if every else ("fid",):
        name = metric_name(kind, evaluate.features.name, evaluate.num_samples)
        names |= {f"{prefix}/{name}{ending}{part}" for ending in endings for part in ("", "_error", "_floor", "_n")}
    copies = {"test/copied", "test/neighbour_distance_ratio"} if prefix == "test" else set()
    return names | copies | {f"{prefix}/nfe", f"{prefix}/sampling_seconds"}
