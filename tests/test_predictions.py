"""The laws of the predictions for many processes in tests/benchmarks/scale.py, and that README.md has its tables."""

from pathlib import Path

import pytest
from benchmarks import scale
from benchmarks.scale import (
    BUCKET,
    Evaluation,
    Fabric,
    Training,
    fewest_steps_times,
    largest_useful_batch,
    slowest_of,
)

MANY = (2, 3, 8, 9, 64, 512, 4096)
GPUS = Fabric(bandwidth=300e9, hop=3e-6, network=280e9, network_hop=14e-6)
TRAINING = Training(batch=128, step=30e-3, backward=20e-3, gradients=143e6)
SHARDED = Training(batch=64, step=0.26, backward=0.17, gradients=1.2e9, units=59)


@pytest.mark.parametrize("training", [TRAINING, SHARDED])
def test_one_process_exchanges_nothing(training):
    assert training.seconds(1, GPUS) == training.step
    assert GPUS.all_reduce(1e9, 1) == GPUS.ring(1e9, 1) == 0
    assert training.seconds(1, Fabric(1e9, 1e-5, processors=1)) == training.step


@pytest.mark.parametrize("n", MANY)
def test_sums_take_twice_their_bytes_and_no_less(n):
    free = Fabric(300e9, 0.0, network=280e9)
    lowest = 2 * (n - 1) / n * 1e9 / free.slowest(n)  # no process sends less (Patarasuk and Yuan 2009, theorem 1)
    assert free.all_reduce(1e9, n) == pytest.approx(lowest)
    assert lowest <= GPUS.all_reduce(1e9, n) <= 2 * GPUS.ring(1e9, n)
    assert GPUS.all_reduce(4, n) < 3e-4  # a tree of few hops


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("training", [TRAINING, SHARDED])
def test_growth_is_linear_without_costs_and_never_better(training, n):
    free = Fabric(1e30, 0.0, network=1e30)
    assert training.images(n, free) == pytest.approx(n * training.images(1, free))
    assert 0 < training.images(n, GPUS) < n * training.images(1, GPUS)
    assert training.images(n, GPUS) < training.images(2 * n, GPUS)


def test_what_overlaps_the_backward_pass_is_between_nothing_and_all():
    for bandwidth in (1e7, 1e9, 1e11):
        fabric = Fabric(bandwidth, 1e-5, network=bandwidth)
        sums = [fabric.all_reduce(nbytes, 64) for nbytes in TRAINING.buckets()]
        assert sum(TRAINING.buckets()) == TRAINING.gradients and max(TRAINING.buckets()) == BUCKET
        assert sums[-1] <= TRAINING.exposed(64, fabric) <= sum(sums)
        assert TRAINING.exposed(64, fabric) >= sum(sums) - TRAINING.backward
        assert SHARDED.exposed_sharded(64, fabric) >= 0


def test_processes_beyond_the_processors_divide_them():
    free = Fabric(1e30, 0.0, per_machine=64, processors=2)
    assert [TRAINING.images(n, free) / TRAINING.images(1, free) for n in (1, 2, 3, 8)] == pytest.approx([1, 2, 2, 2])
    drawing = Evaluation(image=0.01)
    assert [drawing.drawing(600, n, free) for n in (1, 2, 3, 6)] == pytest.approx([6, 3, 3, 3])


def test_an_evaluation_is_divided_until_its_own_costs_are_left():
    evaluation = Evaluation(image=0.05, start=0.1, batch=100, sums=4e8, metrics=10.0)
    assert evaluation.seconds(50_000, 1, GPUS) == pytest.approx(50_000 * 0.05 + 500 * 0.1 + 10)
    times = [evaluation.seconds(50_000, n, GPUS) for n in MANY]
    assert times == sorted(times, reverse=True) and times[-1] > 10
    assert evaluation.drawing(50_001, 50_000, GPUS) == pytest.approx(2 * 0.05 + 0.1)  # one process draws two


def test_the_slowest_of_many():
    assert slowest_of(1) == pytest.approx(0, abs=1e-12)
    assert [slowest_of(n) for n in (2, 3, 10, 100)] == pytest.approx([0.564, 0.846, 1.539, 2.508], abs=0.03)  # tables


def test_batches_and_the_noise_scale():
    assert fewest_steps_times(100, 100) == 2  # half of what many would save
    for gain in (1.01, 1.1, 1.5):
        largest = largest_useful_batch(100, gain)
        assert fewest_steps_times(largest, 100) / fewest_steps_times(2 * largest, 100) == pytest.approx(gain)


def test_the_page_has_these_tables():
    page = (Path(scale.__file__).parent / "README.md").read_text()
    for table in scale.tables():
        assert "\n".join(table) in page, "python tests/benchmarks/scale.py prints what belongs there"
