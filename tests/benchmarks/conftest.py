"""`python -m pytest tests/benchmarks -m benchmark`: each benchmark alternates between this package and its
peers, and a table shows the results.

With a CUDA device everything runs there; `--benchmark-json FILE` keeps the numbers.
"""

import lightning_score.lean_imports  # noqa: F401

import platform
import statistics
import time
from pathlib import Path

import pytest
import torch

ROWS = pytest.StashKey[list[tuple[str, ...]]]()


def pytest_collection_modifyitems(items):
    """Marks all tests of this folder as benchmarks, which run only on request."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.benchmark)


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def note(request, benchmark):
    """Adds a row to the table: the quantity, our value, the peer, its value, and their ratio."""

    def write(what, ours, against, other, ratio):
        benchmark.extra_info.setdefault("rows", []).append([what, ours, against, other, ratio])
        request.config.stash.setdefault(ROWS, []).append((what, ours, against, other, ratio))

    return write


@pytest.fixture
def compare(benchmark, note, device):
    """Times `ours` and `others`, each a function without arguments, in turns, and notes the ratios of their medians.

    Every round calls each once, after one call of each to warm up, so that a machine that slows down slows all alike.
    Returns the medians in seconds by name, "ours" among them.
    """

    def run(what, ours, others, rounds=5, warmup=1):
        times = {name: [] for name in others}

        def take_others():
            for name, function in others.items():
                times[name].append(seconds(function, device))

        def synchronized():
            ours()
            synchronize(device)

        for function in (ours, *others.values()):
            for _ in range(warmup):
                seconds(function, device)
        benchmark.pedantic(synchronized, setup=take_others, rounds=rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        mine = statistics.median(benchmark.stats.stats.data)
        for name, other in medians.items():
            note(what, duration(mine), name, duration(other), f"{other / mine:.2f}")
        return {"ours": mine, **medians}

    return run


def seconds(function, device):
    """The wall-clock time of one call, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device):
    """Waits until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def duration(value):
    """Seconds in a readable unit."""
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3)) if value * f >= 1), ("us", 1e6))
    return f"{value * factor:.3g} {unit}"


def pytest_terminal_summary(terminalreporter, config):
    """The table of all benchmarks, in Markdown."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    header = ("benchmark", "lightning_score", "against", "theirs", "ratio")
    table = [header, tuple("---" for _ in header), *rows]
    terminalreporter.write_line(f"\n{card}, {platform.platform()}, torch {torch.__version__}\n")
    for row in table:
        terminalreporter.write_line(f"| {' | '.join(row)} |")
