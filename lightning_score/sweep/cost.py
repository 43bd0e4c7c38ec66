"""The cost of a sweep, in network evaluations, before its first trial."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_score.callbacks.sampling_cost import SamplingCost
from lightning_score.sweep.loaded import LoadedCommand

MOST = 24
"""Number of trials whose samples and evaluations are counted; the numbers of samples of the others are extrapolated."""


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep.

    Attributes:
        trials: their number.
        training: whether they train; then `samples` counts one validation of each trial.
        samples: the number of samples of all trials.
        evaluations: network evaluations per sample, the least and the most.
    """

    trials: int
    training: bool
    samples: int
    evaluations: tuple[int, int]

    def __str__(self) -> str:
        low, high = self.evaluations
        each = f"{low}" if low == high else f"{low} to {high}"
        drawn = f"{self.samples} samples at {each} network evaluations each" if self.samples else "no samples"
        return f"{self.trials} trials, {drawn}{' per validation' if self.training and self.samples else ''}"


def estimate(command: LoadedCommand, trials: Sequence[list[str]], count: int) -> Cost:
    """Counts samples and network evaluations of the trials.

    Args:
        command: that of the first trial.
        trials: the arguments of some trials.
        count: the number of all trials.

    Raises:
        InputError: the samples of a trial do not fit into memory, or would take months.
    """
    training = command.command == "fit"
    chosen = [trials[round(i * (len(trials) - 1) / (MOST - 1))] for i in range(MOST)] if len(trials) > MOST else trials
    costs = []
    for arguments in chosen:
        if not training:
            command.take(arguments)
        costs.append(SamplingCost(command.command, command.model, command.parse(arguments)))
    evaluations = [cost.evaluations for cost in costs if cost.n] or [0]
    samples = sum(cost.n for cost in costs) * count / len(costs)
    return Cost(count, training, round(samples), (min(evaluations), max(evaluations)))
