"""Time grids."""

import pytest
import torch
from conftest import GRIDS, MixtureScore

from lightning_score.errors import InputError
from lightning_score.process import VE, VP, BetaTable, SigmaTable
from lightning_score.sampling import (
    DDIM,
    AnnealedLangevin,
    Geometric,
    Given,
    Karras,
    Leading,
    Linspace,
    NoiseStream,
    ProcessTable,
    Quadratic,
    ScoreSDESteps,
    Snapped,
)


@pytest.mark.parametrize("kind", GRIDS, ids=lambda c: c.__name__)
def test_grids_decrease_from_noise_to_data(noise_process, kind):
    if kind in (ProcessTable, Snapped, Leading, Linspace) and not isinstance(noise_process, (BetaTable, SigmaTable)):
        with pytest.raises(InputError, match="has no table"):
            kind()(noise_process)
        return
    grid = Given([1.0, 0.7, noise_process.t_min]) if kind is Given else kind()
    times = grid(noise_process)
    assert times.dtype == torch.float64 and float(times[0]) == (0.985 if kind is Leading else 1)
    assert bool((times.diff() < 0).all())
    to_data = kind in (ProcessTable, Leading, Linspace, ScoreSDESteps)
    assert float(times[-1]) == (0 if to_data else pytest.approx(noise_process.t_min))


def test_grid_formulas():
    process = VE(0.002, 80.0)
    steps = torch.arange(19, dtype=torch.float64) / 18
    karras = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(process.sigma(Karras(18)(process)), karras)
    geometric = 80 * (0.002 / 80) ** steps
    torch.testing.assert_close(process.sigma(Geometric(18)(process)), geometric)
    torch.testing.assert_close(Quadratic(18, 0.04)(VP()), (1 - 0.8 * steps) ** 2)


class TestGiven:
    def test_noise_levels_and_times_are_the_same_grid(self, noise_process):
        times = Karras(7, 0.1)(noise_process)
        torch.testing.assert_close(Given(times.tolist())(noise_process), times)
        levels = Given(sigmas=noise_process.noise_level(times).tolist())(noise_process)
        torch.testing.assert_close(noise_process.log_snr(levels), noise_process.log_snr(times))

    def test_a_last_level_of_zero_is_clean_data_where_the_process_has_them(self):
        process = SigmaTable(0.01, 10.0, 100)
        assert (
            Given(sigmas=[10.0, 0.1, 0.0])(process).tolist()
            == Given([1.0, float(process.table_times()[33]), 0.0])(process).tolist()
        )
        with pytest.raises(InputError, match=r"sigmas=0: VE does not have this noise level .* nearest is 0.01"):
            Given(sigmas=[10.0, 0.1, 0.0])(VE(0.01, 10.0))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "give exactly one of them"),
            ({"times": [1.0, 0.5], "sigmas": [1.0, 0.5]}, "give exactly one of them"),
            ({"times": [1.0]}, r"times=\[1.0\]: must be two or more numbers that fall"),
            ({"times": [1.0, 0.5, 0.5]}, "that fall from noise to data"),
            ({"times": [1.0, float("nan")]}, "that fall from noise to data"),
            ({"times": [1.0, 0.5, -0.1]}, "the last at least 0"),
            ({"times": [1.5, 0.5]}, "must lie between 1"),
            ({"sigmas": [90.0, 1.0]}, "sigmas=90: VE does not have this noise level .* nearest is 80"),
            ({"sigmas": [80.0, 0.001]}, "sigmas=0.001"),
            ({"sigmas": [40.0, 1.0]}, r"sigmas=\[40.0, 1.0\]: must start where samples do, at time 1, .* is 80"),
            ({"times": [0.9, 0.1]}, r"times=\[0.9, 0.1\]: must start where samples do"),
        ],
    )
    def test_errors_name_the_value(self, options, words):
        with pytest.raises(InputError, match=words):
            Given(**options)(VE(0.002, 80.0))


class TestTable:
    @pytest.mark.parametrize("process", [BetaTable(), SigmaTable(levels=100)], ids=lambda p: type(p).__name__)
    @pytest.mark.parametrize("steps", [1, 2, 7, 30, 50, 99, 100])
    def test_a_part_strides_evenly_from_the_largest_entry_to_clean_data(self, process, steps):
        entries = len(process.table_times())
        positions = ProcessTable(steps)(process) * entries
        torch.testing.assert_close(positions, positions.round())
        assert len(positions) == steps + 1 and float(positions[0]) == entries and float(positions[-1]) == 0
        assert bool((positions - torch.linspace(entries, 0, steps + 1)).abs().max() <= 0.5)
        assert bool((positions.diff() < 0).all())

    def test_all_entries_are_the_default(self):
        process = SigmaTable(levels=10)
        assert torch.equal(ProcessTable()(process), ProcessTable(10)(process))
        assert torch.equal(ProcessTable()(process)[:-1].flip(0), process.table_times())

    def test_refuses_more_steps_than_entries(self):
        with pytest.raises(InputError, match="steps=11: the table of SigmaTable has 10 entries"):
            ProcessTable(11)(SigmaTable(levels=10))
        with pytest.raises(InputError, match="steps=0"):
            ProcessTable(0)

    def test_annealed_langevin_visits_the_entries_kept_and_ends_at_the_smallest_of_them(self):
        process, sampler = SigmaTable(0.01, 1.0, 10), AnnealedLangevin(2e-5, 3, ProcessTable(5))
        sampler.check(process)
        ends = [stage.end for stage in sampler.plan(process, sampler.grid(process))]
        visited = torch.stack(ends).unique().flip(0)
        torch.testing.assert_close(process.sigma(visited), process.sigmas[[9, 7, 5, 3, 1]])
        result = sampler(MixtureScore(process), NoiseStream(0, range(5), (2,)))
        assert result.nfe == 5 * 3 and bool(result.x.isfinite().all())
        limit = 2 * float(process.sigmas[1]) ** 2
        AnnealedLangevin(0.99 * limit, 3, ProcessTable(5)).check(process)
        with pytest.raises(InputError, match="Langevin dynamics diverges"):
            AnnealedLangevin(1.01 * limit, 3, ProcessTable(5)).check(process)


class TestDiffusersSpacings:
    """The same entries as their schedulers' `timesteps`, which count from 0."""

    entries = 1000

    def peer(self, kind, steps, spacing, **settings):
        import diffusers

        scheduler = getattr(diffusers, f"{kind}Scheduler")(
            num_train_timesteps=self.entries, timestep_spacing=spacing, **settings
        )
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.tolist()

    def ours(self, grid):
        return (grid(BetaTable(steps=self.entries)) * self.entries - 1).round().long().tolist()

    @pytest.mark.parametrize("steps", [2, 3, 7, 10, 30, 50, 333, 999, 1000])
    def test_ddim_and_ddpm(self, steps):
        for kind in ("DDIM", "DDPM"):
            assert self.ours(Linspace(steps))[:-1] == self.peer(kind, steps, "linspace")
            assert self.ours(ProcessTable(steps))[:-1] == self.peer(kind, steps, "trailing")
            for offset in (0, 1) if steps <= 500 else (0,):  # with 1, theirs would start beyond the table
                assert self.ours(Leading(steps, offset))[:-1] == self.peer(kind, steps, "leading", steps_offset=offset)

    @pytest.mark.parametrize("steps", [2, 3, 7, 10, 30, 50, 332, 500])
    @pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"])
    def test_multistep_schedulers_leave_out_the_last(self, kind, steps):
        assert self.ours(Linspace(steps, skip_last=True))[:-1] == self.peer(kind, steps, "linspace")
        assert self.ours(ProcessTable(steps))[:-1] == self.peer(kind, steps, "trailing")
        for offset in (0, 1):
            expected = self.peer(kind, steps, "leading", steps_offset=offset)
            assert self.ours(Leading(steps, offset, skip_last=True))[:-1] == expected

    @pytest.mark.parametrize("to_data", [True, False])
    def test_the_last_step_of_ddim_ends_where_theirs_does(self, to_data):
        from diffusers import DDIMScheduler

        process, steps = BetaTable(), 30
        peer = DDIMScheduler(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=to_data, clip_sample=False)
        peer.betas, peer.alphas_cumprod = process.betas, torch.cumprod(1 - process.betas, 0)
        peer.final_alpha_cumprod = torch.ones(()).double() if to_data else peer.alphas_cumprod[0]
        peer.set_timesteps(steps)
        times, score = Leading(steps, 1, to_data)(process), MixtureScore(process)
        ours = theirs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
        for t, s, index in zip(times[:-1], times[1:], peer.timesteps, strict=True):
            output = score.noise(theirs, torch.tensor((float(index) + 1) / 1000).double())
            theirs = peer.step(output, index, theirs).prev_sample
            ours, _ = DDIM().step(score, ours, t, s, None, None)
        torch.testing.assert_close(ours, theirs)
        assert float(times[-1]) == (0 if to_data else 0.001)

    def test_a_step_from_the_smallest_entry_to_itself_is_left_out(self):
        assert self.ours(Leading(10, to_data=False)) == self.ours(Leading(10))[:-1]
        assert self.ours(Linspace(10, to_data=False)) == self.ours(Linspace(10))[:-1]

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Leading(1), "steps=1: must be at least 2"),
            (lambda: Linspace(0), "steps=0"),
            (lambda: Leading(offset=-1), "offset=-1: must be at least 0"),
            (lambda: Leading(11)(BetaTable(steps=10)), "steps=11: the table of BetaTable has 10 entries; need at most 10"),
            (lambda: Linspace(10, skip_last=True)(BetaTable(steps=10)), "need at most 9 steps"),
            (lambda: Leading(10, 1)(BetaTable(steps=10)), "offset=1: .* at entry 11 of 10; need at most 0"),
            (lambda: ScoreSDESteps(1), "steps=1: must be at least 2"),
            (lambda: ScoreSDESteps(t_min=0.0), "t_min=0.0"),
        ],
    )
    def test_errors_name_the_value(self, make, words):
        with pytest.raises(InputError, match=words):
            make()
