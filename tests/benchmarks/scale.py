"""Predicts how training and evaluation grow with the number of processes, from costs of one process.

`python tests/benchmarks/scale.py` prints the tables of README.md in this folder; `test_scale.py` measures the costs of the
machine it runs on, and compares predictions with real runs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes of gradients that DistributedDataParallel reduces at once: of the first ones, and of the others."""
FLAG = 4
"""Bytes by which processes tell one another in every step whether the loss is finite."""


@dataclass(frozen=True)
class Fabric:
    """How processes exchange bytes, and what they share.

    Attributes:
        bandwidth: bytes per second that a process sends while it receives as many, within a machine.
        hop: seconds until a message within a machine arrives.
        per_machine: processes of a machine.
        network: bytes per second that a whole machine sends while it receives as many.
        network_hop: seconds until a message to another machine arrives.
        processors: that the processes of a machine share, for computing and for messages; None: each has a GPU of its own,
            which exchanges bytes while it computes.
    """

    bandwidth: float
    hop: float
    per_machine: int = 8
    network: float = math.inf
    network_hop: float = 0.0
    processors: int | None = None

    def slowest(self, n: int) -> float:
        """Bytes per second around a ring of n processes: it has several lanes, and each leaves a machine by another card."""
        return self.bandwidth if n <= self.per_machine else min(self.bandwidth, self.network)

    def ring(self, nbytes: float, n: int) -> float:
        """Seconds in which n processes gather nbytes, of which each has an nth part, or scatter their sum so."""
        machines = math.ceil(n / self.per_machine)
        hops = (n - 1) * self.hop if machines == 1 else (n - machines) * self.hop + machines * self.network_hop
        return (n - 1) / n * nbytes / self.slowest(n) + hops

    def tree(self, nbytes: float, n: int) -> float:
        """Seconds of a sum up a tree of machines, and back; within a machine along a chain."""
        local, machines = min(n, self.per_machine), math.ceil(n / self.per_machine)
        hops = (local - 1) * self.hop + math.ceil(math.log2(machines)) * self.network_hop
        return 2 * (nbytes / self.slowest(n) + hops) if n > 1 else 0.0

    def all_reduce(self, nbytes: float, n: int) -> float:
        """Seconds until n processes have the sum of nbytes of each, by a tree, or by a ring (Patarasuk and Yuan 2009, J.
        Parallel Distrib. Comput. 69): `2 (n - 1)/n nbytes/bandwidth + 2 (n - 1) hop`, whichever is faster.
        """
        return min(2 * self.ring(nbytes, n), self.tree(nbytes, n))

    def crowding(self, n: int) -> float:
        """How many times as long n processes compute because they share processors."""
        return 1.0 if self.processors is None else max(1.0, min(n, self.per_machine) / self.processors)


@dataclass(frozen=True)
class Training:
    """Costs of the training steps of one process.

    Attributes:
        batch: examples of a step and process.
        step: seconds, without any exchange.
        backward: seconds of it in which gradients become ready, evenly.
        gradients: their bytes.
        together: how many times as long a step takes while all processors of the machine compute.
        spread: standard deviation of the time of a step, as a share of it: each step waits for the slowest process.
        units: parts whose weights `fsdp2` gathers one after the other; 0: every process has all weights (`ddp`).
    """

    batch: int
    step: float
    backward: float
    gradients: float
    together: float = 1.0
    spread: float = 0.0
    units: int = 0

    def buckets(self) -> Iterator[float]:
        """The bytes that are reduced at once, in the order in which they become ready."""
        left, size = self.gradients, FIRST_BUCKET
        while left > 0:
            yield min(left, size)
            left, size = left - size, BUCKET

    def exposed(self, n: int, fabric: Fabric) -> float:
        """Seconds that a step waits for gradients after the backward pass: the sum of a bucket begins when its gradients are
        ready and the sum before it is done.
        """
        ready = end = 0.0
        for nbytes in self.buckets():
            ready += self.backward * nbytes / self.gradients
            end = max(end, ready) + fabric.all_reduce(nbytes, n)
        return max(end - self.backward, 0.0) if n > 1 else 0.0

    def exposed_sharded(self, n: int, fabric: Fabric) -> float:
        """The same where weights are sharded: gathered in the forward and in the backward pass, which also scatters the sums
        of the gradients. Of the first and of the last unit nothing is hidden.
        """
        one = fabric.ring(self.gradients / self.units, n)
        forward = self.step - self.backward
        late = max(self.units * one - forward, 0.0) + max(2 * self.units * one - self.backward, 0.0)
        return late + 2 * one if n > 1 else 0.0

    def seconds(self, n: int, fabric: Fabric) -> float:
        """Seconds of a step of n processes."""
        compute = self.step * (1 + self.spread * slowest_of(n))
        if fabric.processors is None:
            flag = fabric.all_reduce(FLAG, n)
            return compute + flag + (self.exposed_sharded if self.units else self.exposed)(n, fabric)
        exchange = sum(fabric.all_reduce(nbytes, n) for nbytes in self.buckets())  # by the processors: nothing is hidden
        return fabric.crowding(n) * (compute * (self.together if n > 1 else 1.0) + exchange)

    def images(self, n: int, fabric: Fabric) -> float:
        """Examples per second of n processes."""
        return n * self.batch / self.seconds(n, fabric)


@dataclass(frozen=True)
class Evaluation:
    """Costs of drawing and measuring samples.

    Attributes:
        image: seconds to draw one more sample in a batch.
        start: seconds of a batch besides.
        batch: samples that a process draws at once.
        sums: bytes that all processes add up in the end.
        metrics: seconds from the sums to the metrics, in every process.
        together: as in `Training`.
    """

    image: float
    start: float = 0.0
    batch: int = 1024
    sums: float = 0.0
    metrics: float = 0.0
    together: float = 1.0

    def drawing(self, samples: int, n: int, fabric: Fabric) -> float:
        """Seconds until n processes have drawn their shares."""
        mine = math.ceil(samples / n)
        alone = mine * self.image + math.ceil(mine / self.batch) * self.start
        return alone * fabric.crowding(n) * (self.together if n > 1 else 1.0)

    def seconds(self, samples: int, n: int, fabric: Fabric) -> float:
        """Seconds until they have the metrics."""
        return self.drawing(samples, n, fabric) + fabric.all_reduce(self.sums, n) + self.metrics


def slowest_of(n: int) -> float:
    """The mean of the largest of n standard normal numbers (Blom 1958), 0 for one."""
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def fewest_steps_times(batch: float, noise_scale: float) -> float:
    """The steps to a loss with batches of all processes, over those with infinite ones: `1 + B_noise/B` (McCandlish et al.
    2018, 1812.06162, eq. 2.11). The examples over the fewest are `1 + B/B_noise`.
    """
    return 1 + noise_scale / batch


def largest_useful_batch(noise_scale: float, gain: float = 1.1) -> float:
    """The batch from which twice as many examples a step save no factor of `gain` in steps; 1 < gain < 2."""
    return noise_scale * (1 - gain / 2) / (gain - 1)


GPUS = (1, 8, 64, 512)
DGX = Fabric(0.7 * 450e9, 3.4e-6, per_machine=8, network=0.7 * 8 * 50e9, network_hop=14e-6)
"""Assumed: NVLink of an H100, 450 GB/s in each direction, and one NDR InfiniBand card, 50 GB/s, for each of eight GPUs (the
specification of a DGX H100), both used to 70 %; the latencies of NCCL's model (`src/graph/tuning.cc`, ring, Simple)."""
ETHERNET = Fabric(DGX.bandwidth, DGX.hop, per_machine=8, network=0.7 * 12.5e9, network_hop=14e-6)
"""Assumed: the same machines, joined by one card of 100 Gb/s each."""
PEAK = 798e12
"""Measured: floating-point operations per second of a large product of matrices on an H100, in bfloat16."""


def of_images(rate: float, batch: int, parameters: float, units: int = 0) -> Training:
    """The costs of a step on a GPU from its images per second; the backward pass is two thirds of it, with twice the
    operations of the forward pass, and steps are assumed to differ by 1 %.
    """
    return Training(batch, batch / rate, 2 / 3 * batch / rate, 4 * parameters, spread=0.01, units=units)


ADM = 0.2 * PEAK / (3 * 219.3e9)
"""Images per second of a training step: counted operations, at the share of the peak that was measured for DDPM."""
TRAININGS = {
    "DDPM, CUDA graphs": of_images(4374, 128, 35.7e6),
    "NCSN++, plain": of_images(772, 128, 62.8e6),
    "ADM, `ddp`": of_images(ADM, 64, 295.9e6),
    "ADM, `fsdp2`": of_images(ADM, 64, 295.9e6, units=59),
}
SUMS = 8 * 10 * (2048**2 + 2048 + 1) + 4 * 10_000 * (2048 + 1008)
"""Bytes that processes add up: sums of features in ten blocks, and features and logits of the first samples."""
METRICS = 10.0
"""Assumed: seconds of all metrics of `test` on a GPU."""
EVALUATIONS = {
    "DDPM, 1000 evaluations, CUDA graphs": Evaluation(1000 / 19322, sums=SUMS, metrics=METRICS),
    "NCSN++, 2000 evaluations": Evaluation(2000 * 21.76e9 / (0.3 * PEAK), sums=SUMS, metrics=METRICS),
    "ADM, 511 evaluations": Evaluation(511 * 219.3e9 / (0.3 * PEAK), sums=SUMS, metrics=METRICS),
}


def tables() -> list[list[str]]:
    """The tables of README.md: steps and images per second, and the times of evaluations."""
    header = ["1 GPU", *(f"{n} GPUs" for n in GPUS[1:])]
    steps = [["training, steps/s and images/s", "between machines", *header, "efficiency at 512"]]
    for name, each in TRAININGS.items():
        for where, fabric in (("InfiniBand", DGX), ("100 Gb/s", ETHERNET)):
            rates = [f"{1 / each.seconds(n, fabric):.3g}, {_short(each.images(n, fabric))}" for n in GPUS]
            steps.append([name, where, *rates, f"{each.images(512, fabric) / each.images(1, fabric) / 5.12:.0f} %"])
    drawn = [["50 000 samples, drawing and metrics", *header]]
    for name, cost in EVALUATIONS.items():
        times = ((cost.drawing(50_000, n, DGX), cost.seconds(50_000, n, DGX)) for n in GPUS)
        drawn.append([name, *(f"{_short(drawing)} + {whole - drawing:.0f} s" for drawing, whole in times)])
    return [_table(*steps), _table(*drawn)]


def _short(value: float) -> str:
    """Three digits, in groups."""
    return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ")


def _table(header: list[str], *rows: list[str]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    print("\n\n".join("\n".join(table) for table in tables()))
