"""A warning at the start of a run if the process does not fit the data."""

from lightning.pytorch.utilities import rank_zero_only

from lightning_score.data import ScoreData
from lightning_score.process import NoiseProcess
from lightning_score.sampling.prior import few, warn_of_prior
from lightning_score.seeds import derive_seed, seeded


@rank_zero_only
def check_prior(process: NoiseProcess, data: ScoreData) -> None:
    """Warns if the prior of the process does not fit the training examples, of which it takes a few."""
    x = data.splits.train.x
    with seeded(derive_seed()):  # of dequantization
        warn_of_prior(process, data.as_input(x[few(len(x), x[0].numel())]))
