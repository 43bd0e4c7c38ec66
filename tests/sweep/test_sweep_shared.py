"""A sweep that several machines share through a real PostgreSQL server."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import yaml

from lightning_score.cli import run
from lightning_score.sweep.attempts import SLOT
from lightning_score.sweep.spec import read_sweep_file
from lightning_score.sweep.study import WORKER, Study
from sweeps import TEST

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "s3cret"


@pytest.fixture
def postgres():
    """The address of a database in a separate server, in a folder that the server's user may enter."""
    if not SERVERS:
        pytest.skip("PostgreSQL's server is not installed (Debian's package postgresql)")
    programs, data = SERVERS[-1].parent, Path(tempfile.mkdtemp(prefix="postgres"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    (secret := data / "secret").write_text(PASSWORD)
    if as_user:
        shutil.chown(data, "postgres")
        shutil.chown(secret, "postgres")

    def call(program, *arguments):
        subprocess.run([*as_user, str(programs / program), *arguments], check=True, capture_output=True, timeout=60, cwd="/")

    call("initdb", "-D", f"{data}/db", "-U", "sweeper", "--auth=scram-sha-256", f"--pwfile={secret}")
    call(
        "pg_ctl",
        "-D",
        f"{data}/db",
        "-l",
        f"{data}/log",
        "-w",
        "-o",
        f"-p {port} -k {data} -c listen_addresses=127.0.0.1",
        "start",
    )
    yield f"postgresql://sweeper:{PASSWORD}@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", f"{data}/db", "-m", "immediate", "stop")
    shutil.rmtree(data)


@pytest.mark.slow
def test_two_machines_share_a_sweep(tmp_path, checkpoint, postgres, monkeypatch, capsys):
    machines = [tmp_path / name for name in ("one", "two")]
    begun = []
    for machine in machines:
        machine.mkdir()
        shutil.copy(checkpoint, machine / "tiny.ckpt")
        (machine / "steps.yaml").write_text(yaml.safe_dump(TEST))
        command = [sys.executable, "-m", "lightning_score", "sweep", "steps.yaml", f"--storage={postgres}"]
        begun.append(subprocess.Popen(command, cwd=machine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    printed = [process.communicate(timeout=240)[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], printed
    monkeypatch.chdir(machines[0])
    trials = Study(read_sweep_file("steps.yaml"), postgres, "steps").trials()
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert Counter(trial.user_attrs[SLOT] for trial in complete) == Counter(range(6)) and len(trials) == 6
    assert len({trial.user_attrs[WORKER] for trial in complete}) == 2
    best = [re.search(r"best: (.*)", text)[1] for text in printed]
    assert best[0] == best[1] and all((machine / "runs/sweeps/steps/summary.md").exists() for machine in machines)
    wrong = postgres.replace("/postgres", "/elsewhere")
    assert run(["sweep", "steps.yaml", f"--storage={wrong}"]) == 2
    assert "cannot be used" in (error := capsys.readouterr().err) and PASSWORD not in error
