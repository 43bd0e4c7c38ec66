"""Several processes that share one start of Python: they are forked after all imports, and meet as under torchrun.

As a script it runs commands, in the same processes, one after the other: `forked.py '[2, [["fit", ...], ["test", ...]]]'`.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

TIMEOUT = 900
"""Seconds until the processes of a group end, if they wait for one another."""


def free_port():
    """A port that is free, as is the one 10 000 above it, at which run folders are agreed on."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.socket() as main, socket.socket() as other:
            main.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def fork(processes, work):
    """Calls `work(rank)`, which returns an exit code, in a new process for each rank, and returns their exit codes."""
    launcher = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "forked"}  # fmt: skip
    children = []
    for rank in range(processes):
        if pid := os.fork():
            children.append(pid)
            continue
        signal.alarm(TIMEOUT)
        code = 1
        try:
            if processes > 1:
                os.environ |= {name: str(value) for name, value in (launcher | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            code = work(rank)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def run_together(environment, processes, *commands):
    """The exit codes of processes that run commands until one fails, and what they print."""
    script = [sys.executable, str(Path(__file__)), json.dumps([processes, commands])]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=TIMEOUT + 60)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


def main(processes, commands):
    import lightning_score.lean_imports  # noqa: F401

    import torch._dynamo  # noqa: F401 - as by the first optimizer; all imported before the fork

    from lightning_score.cli import run
    from lightning_score.commands import evaluate, fit, predict  # noqa: F401

    codes = fork(processes, lambda rank: next(filter(None, map(run, commands)), 0))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
