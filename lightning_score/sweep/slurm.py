"""An array job of SLURM: each of its tasks runs trials of one sweep until none waits."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_score.errors import InputError, printable, require
from lightning_score.files import replacing
from lightning_score.sweep.processes import SAVING

FOLDER = "slurm"
"""The folder of the job's script and logs, in the folder of the sweep."""
OURS = {"array": None, "wrap": None, "chdir": None, "open-mode": "append", "nodes": "1", "ntasks": "1",
        "ntasks-per-node": "1"}  # fmt: skip
"""Options of sbatch that the script decides, and the value that they may have."""
NAME = re.compile("[a-z][a-z0-9-]*")

BODY = """
export SLURM_JOB_NAME=bash  # the processes of a trial are started by Lightning, not by srun
{worker} &
worker=$!
trap 'again=yes; kill -TERM "$worker"' USR1  # the time limit is near
trap : TERM  # which SLURM sends to all processes, before it takes the machine away
until wait "$worker"; code=$?; ! kill -0 "$worker" 2> /dev/null; do :; done
if [ "$code" = 143 ] && [ "$again" ]; then exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi
exit "$code"
"""
"""Before the time limit the trials return to the queue with their checkpoints, and so does the task."""


def check_options(given: Mapping[str, object]) -> dict[str, str]:
    """The options of sbatch as text.

    Args:
        given: by their long names, as `partition`; `true` for one without a value.

    Raises:
        InputError: one cannot be written into the script, or is decided by the sweep.
    """
    options = {name: "" if value in (None, "true") else str(value) for name, value in given.items()}
    for name, value in options.items():
        require(bool(NAME.fullmatch(name)), f"--slurm.{name}: must be a long option of sbatch, as --slurm.partition=gpu")
        ours = f"--slurm.{name} {value}: the sweep decides this (--jobs 8 is an array of 8 tasks); leave it out"
        require(OURS.get(name, value) == value, ours)
        require(value.isprintable(), f"--slurm.{name}={value!r}: must be one line of text")
    return options


def script(name: str, folder: Path, tasks: int, words: Sequence[str], given: Mapping[str, str]) -> str:
    """The script of the job.

    Args:
        name: of the sweep.
        folder: of the sweep.
        tasks: number of tasks.
        words: options of the command `sweep` that each task runs.
        given: options of sbatch.
    """
    log = str(folder / FOLDER).replace("\\", "\\\\").replace("%", "%%") + "/%A_%a.log"
    options = {"job-name": name, "array": f"0-{tasks - 1}", "output": log, "open-mode": "append", "requeue": ""}
    options |= {"signal": f"B:USR1@{2 * SAVING:.0f}", **given}
    lines = [f"#SBATCH --{option}" + (f"={_quoted(value)}" if value else "") for option, value in options.items()]
    worker = [sys.executable, "-m", "lightning_score", "sweep", *words]
    setup = [f"cd {shlex.quote(os.getcwd())} || exit 1"]
    if "PYTHONPATH" in os.environ:
        setup.append(f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}")
    return "\n".join(["#!/bin/bash", *lines, *setup]) + BODY.format(worker=shlex.join(worker))


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a script."""
    return value if re.fullmatch(r"[\w./:,%@=+\[\]-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def write_script(folder: Path, text: str) -> Path:
    """Writes the script, which may hold a password, for its owner only."""
    file = folder / FOLDER / "job.sh"
    with replacing(file) as temporary:
        temporary.touch(mode=0o700)
        temporary.write_text(text, encoding="utf-8")
    return file


def submit(file: Path) -> str:
    """Submits a script; returns what sbatch prints.

    Raises:
        InputError: there is no sbatch here, or it refuses the script.
    """
    again = f"sbatch {shlex.quote(str(file))}"
    require(shutil.which("sbatch") is not None, f"--submit: there is no sbatch on this machine; to submit: {again}")
    found = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise InputError(f"--submit: {printable(found.stderr or found.stdout)[:300]}; to submit: {again}")
    return found.stdout.strip()
