"""Time grids."""

import pytest
import torch
from conftest import GRIDS

from lightning_score.process import VE, BetaTable, SigmaTable
from lightning_score.sampling import (
    Geometric,
    Karras,
    Table,
)
from lightning_score.utils import InputError


@pytest.mark.parametrize("kind", GRIDS, ids=lambda c: c.__name__)
def test_grids_decrease_from_noise_to_data(noise_process, kind):
    if kind is Table and not isinstance(noise_process, (BetaTable, SigmaTable)):
        with pytest.raises(InputError, match="has no table"):
            kind()(noise_process)
        return
    times = kind()(noise_process)
    assert times.dtype == torch.float64 and float(times[0]) == 1 and bool((times.diff() < 0).all())
    assert float(times[-1]) == (0 if kind is Table else pytest.approx(noise_process.t_min))


def test_grid_formulas():
    process = VE(0.002, 80.0)
    steps = torch.arange(19, dtype=torch.float64) / 18
    karras = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(process.sigma(Karras(18)(process)), karras)
    geometric = 80 * (0.002 / 80) ** steps
    torch.testing.assert_close(process.sigma(Geometric(18)(process)), geometric)
