"""NCSN's and NCSNv2's checkpoints: the same numbers as the authors' code from the same files.

Recorded with the authors' code in evaluation mode: CondRefineNetDilated of ermongroup/ncsn (ncsn_cifar10, _mnist, _small)
and its CondRefineNetDeeperDilated, whose norm is instance norm (ncsn_dilated_deeper, _gray),
NCSN and NCSNdeeper (ncsn_langevin, _deeper), NCSNv2, NCSNv2Deeper and NCSNv2Deepest (ncsnv2_...) of ermongroup/ncsnv2. Their
config: image_size the height of `shape`, ngf and num_classes those of the tensors' shapes and of `sigmas`, sigma_end 0.01,
InstanceNorm++, elu, not rescaled. The weights are `weights(shapes)`, the images `images(...)`; `y` are the authors' labels,
`output` is what the network gave.
*_langevin: `anneal_Langevin_dynamics` of ncsnv2's models, 4 levels of 3 steps, step_lr 2e-5, denoise for ncsnv2 only, from
the first of `draws()` with the others in place of randn_like.
"""

import math
import re
from functools import partial

import pytest
import torch
from conftest import PREDICTORS, quick
from laws import Draws
from peers import OPTIMIZER, kind_of, network_state, wrapped
from recorded import recorded

from lightning_score import interop, sampling
from lightning_score.errors import InputError
from lightning_score.interop.load import make
from lightning_score.networks import NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from lightning_score.sampling import DormandPrince, NoiseStream
from lightning_score.sampling.likelihood import Dequantization, bits_per_dim, log_likelihood
from lightning_score.score.trace import ExactTrace, Hutchinson, inner

CASES = {
    "ncsn_cifar10": NCSN,
    "ncsn_mnist": NCSN,
    "ncsn_small": NCSN,
    "ncsn_deeper": NCSN,
    "ncsn_dilated_deeper": NCSN,
    "ncsn_dilated_grey": NCSN,
    "ncsnv2_cifar10": NCSNv2,
    "ncsnv2_mnist": NCSNv2,
    "ncsnv2_small": NCSNv2,
    "ncsnv2_deeper": NCSNv2Deeper,
    "ncsnv2_deepest": NCSNv2Deepest,
}
NORM = ["normalizer.gamma", "normalizer.alpha", "normalizer.beta"]


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def draws():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 1, 8, 8, generator=generator), *(torch.randn(2, 1, 8, 8, generator=generator) for _ in range(12))]


@pytest.fixture
def save(tmp_path):
    """Writes a list of states as the authors' code does and gives its path."""

    def write(*states, **options):
        torch.save(list(states), tmp_path / "checkpoint.pth", **options)
        return tmp_path / "checkpoint.pth"

    return write


@pytest.fixture
def small(save):
    """The small NCSNv2 on its 4 levels."""
    return interop.load(save(wrapped(network_state("ncsnv2_langevin")), OPTIMIZER, 3, 700), "ncsnv2")


def distance(ours, theirs):
    """The largest difference over the largest output, of the worst sample."""
    return float(((ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)).max())


class TestEqualsTheAuthors:
    @pytest.mark.parametrize("name", CASES)
    def test_score(self, name, save):
        """The score; NCSNv2's network gives it times sigma."""
        case = recorded(name)
        score = interop.load(save(wrapped(network_state(name)), OPTIMIZER), kind_of(name))
        x, y = images(len(case.tensors["y"]), *case.about["shape"]), case.tensors["y"]
        t = score.process.table_times().flip(0)[y]
        with torch.no_grad():
            assert type(score.network) is CASES[name]
            assert distance(score(x, t), case.tensors["output"]) < 1e-5
            if kind_of(name) == "ncsnv2":
                sigma = case.tensors["sigmas"][y][:, None, None, None]
                assert distance(score.network(x, torch.zeros(())), case.tensors["output"] * sigma) < 1e-5

    @pytest.mark.parametrize("kind", ["ncsn", "ncsnv2"])
    def test_annealed_langevin(self, kind, save):
        name = f"{kind}_langevin"
        path = save(wrapped(network_state(name)), OPTIMIZER)
        score = interop.load(path, kind)
        settings = interop.read(path, kind).model["sampler"]
        sampler = make({**settings, "init_args": {**settings["init_args"], "step_size": 2e-5, "steps": 3}})
        with torch.no_grad():
            samples = sampler(score, Sequence(draws()))
        assert distance(samples.x, recorded(name).tensors["output"]) < 1e-5
        assert samples.nfe == 4 * 3 + (kind == "ncsnv2")


class Sequence(Draws):
    """Hands out given draws in their order."""

    device = "cpu"

    def __init__(self, draws):
        self._draws = iter(draws)

    def normal(self):
        return next(self._draws)

    uniform = normal


class TestRead:
    def test_ncsnv2(self, save):
        state = network_state("ncsnv2_small")
        imported = interop.read(save(wrapped(state), OPTIMIZER, 3, 700), "ncsnv2")
        assert imported.model["process"] == {
            "class_path": "SigmaTable",
            "init_args": {"sigma_min": 0.01, "sigma_max": 50.0, "levels": 3},
        }
        assert imported.model["network"] == {"class_path": "NCSNv2", "init_args": {"channels": 6}}
        assert imported.model["parametrization"]["class_path"] == "ScoreOverSigma"
        assert imported.model["optimizer"]["init_args"] == {"lr": 3e-4, "betas": [0.8, 0.99], "eps": 1e-3}
        assert (imported.shape, imported.data_range, imported.step) == ((3, 32, 32), (0.0, 1.0), 700)
        assert imported.averages is None and imported.num_classes == 0

    def test_ncsn(self, save):
        imported = interop.read(save(wrapped(network_state("ncsn_mnist")), OPTIMIZER), "ncsn")
        assert imported.model["process"]["init_args"] == {"sigma_min": 0.01, "sigma_max": 1.0, "levels": 10}
        assert imported.model["network"] == {"class_path": "NCSN", "init_args": {"levels": 10, "channels": 8}}
        assert imported.shape == (1, 28, 28) and imported.step == 0
        sampler = make(imported.model["sampler"])
        assert (sampler.step_size, sampler.steps) == (2e-5, 100)
        assert type(sampler.denoise) is sampling.KeepNoise and type(sampler.initial) is sampling.UniformNoise
        assert any("--model.process.sigma_max" in note for note in imported.notes)

    @pytest.mark.parametrize(
        ("name", "largest", "levels", "size", "step_size", "steps"),
        [
            ("ncsnv2_small", 50.0, 232, 32, 6.2e-6, 5),
            ("ncsnv2_small", 90.0, 500, 64, 3.3e-6, 5),
            ("ncsnv2_deeper", 140.0, 788, 96, 4.9e-6, 4),
            ("ncsnv2_deeper", 190.0, 1086, 128, 1.8e-6, 3),
            ("ncsnv2_deepest", 348.0, 2311, 256, 9e-7, 3),
            ("ncsnv2_small", 20.0, 100, 32, "auto", 5),
            ("ncsnv2_deepest", 20.0, 100, 256, "auto", 5),
        ],
    )
    def test_published_models_are_known_by_their_ladder(self, name, largest, levels, size, step_size, steps, save):
        sigmas = torch.logspace(
            *torch.tensor([largest, 0.01]).double().log10().tolist(), levels, dtype=torch.float64
        ).float()
        imported = interop.read(save(wrapped({**network_state(name), "sigmas": sigmas}), OPTIMIZER, 0, 1), "ncsnv2")
        assert imported.model["process"]["init_args"] == {"sigma_min": 0.01, "sigma_max": largest, "levels": levels}
        assert imported.shape == (3, size, size)
        sampler = make(imported.model["sampler"])
        assert (sampler.step_size, sampler.steps) == (step_size, steps)
        assert type(sampler.denoise) is sampling.Tweedie and type(sampler.initial) is sampling.UniformNoise
        assert f"{size} x {size}" in imported.notes[0] and "--size" in imported.notes[0]

    def test_a_ladder_in_equal_steps(self, save):
        """sigma_dist: uniform of the authors' config."""
        sigmas = torch.linspace(50, 0.01, 232, dtype=torch.float64).float()
        score = interop.load(save(wrapped(network_state("ncsnv2_small") | {"sigmas": sigmas}), OPTIMIZER, 0, 1), "ncsnv2")
        torch.testing.assert_close(score.process.sigmas.flip(0).float(), sigmas, rtol=1e-5, atol=0)

    def test_instance_norm_has_two_coefficients(self, save):
        network = interop.load(save(wrapped(network_state("ncsn_dilated_deeper")), OPTIMIZER), "ncsn").network
        assert network.norm_out.table.shape == (4, 2, 6)

    @pytest.mark.parametrize("name", ["ncsn_small", "ncsnv2_small"])
    def test_averages(self, name, save):
        """They are kept by the names of the network's parameters, without the table."""
        state = network_state(name)
        averages = {n: tensor + 0.1 for n, tensor in state.items() if n != "sigmas"}
        path = save(wrapped(state), OPTIMIZER, 3, 700, averages)
        averaged, raw = (interop.load(path, kind_of(name), averaged=a).network.conv_out for a in (True, False))
        assert torch.equal(averaged.bias, averages["end_conv.bias"]) and torch.equal(raw.bias, state["end_conv.bias"])

    def test_files_of_the_authors_torch(self, save):
        path = save(wrapped(network_state("ncsn_small")), OPTIMIZER, _use_new_zipfile_serialization=False)
        assert interop.read(path, "ncsn").weights.keys() == NCSN([3, 8, 8], channels=6, levels=3).state_dict().keys()


class TestRefuses:
    """Nothing is loaded in part: what does not fit is named."""

    @pytest.mark.parametrize("averages", [False, True], ids=["raw", "averages"])
    @pytest.mark.parametrize("name", ["ncsn_small", "ncsnv2_small", "ncsnv2_deepest"])
    @pytest.mark.slow
    def test_a_missing_or_a_surplus_tensor(self, name, averages, save):
        state = network_state(name)
        table = {n: state.pop(n) for n in list(state) if n == "sigmas"}

        def read(changed):
            raw, averaged = (state, changed) if averages else (changed, state)
            return interop.read(save(wrapped(table | raw), OPTIMIZER, 3, 700, averaged), kind_of(name))

        read(state)
        with pytest.raises(InputError, match=r"converted: 1 unused tensors, res7\.extra\.weight"):
            read({**state, "res7.extra.weight": torch.ones(1)})
        stages = [n for n in state if n.endswith(".0.conv1.weight")]  # without one of these the stages are other ones
        for missing in [n for n in state if n not in stages][:: len(state) // 9]:
            with pytest.raises(InputError, match=f"it lacks '{re.escape(missing)}'"):
                read({n: tensor for n, tensor in state.items() if n != missing})

    def test_every_missing_tensor_of_a_network_is_named(self, save):
        state = network_state("ncsnv2_small")
        for missing in [
            "sigmas",
            "normalizer.gamma",
            "begin_conv.bias",
            "res3.0.shortcut.bias",
            "refine4.crp.convs.1.weight",
        ]:
            left = {n: tensor for n, tensor in state.items() if n != missing}
            with pytest.raises(InputError, match=f"it lacks '{missing}'"):
                interop.read(save(wrapped(left), OPTIMIZER), "ncsnv2")

    @pytest.mark.parametrize(("name", "other"), [("ncsn_small", "ncsnv2"), ("ncsnv2_small", "ncsn")])
    def test_the_other_kind_with_the_fix(self, name, other, save):
        with pytest.raises(InputError, match=f"convert it as {kind_of(name)}$"):
            interop.read(save(wrapped(network_state(name)), OPTIMIZER), other)

    @pytest.mark.parametrize("kind", ["ncsn", "ncsnv2"])
    @pytest.mark.parametrize(
        ("states", "message"),
        [
            ([{"weight": torch.ones(1)}, OPTIMIZER], "no stages.*first tensors are weight"),
            ([{"weight": torch.ones(1)}], "a list of states"),
            ([1, 2, 3, 4], "a list of states .*; this is a list of int, int"),
            ([], "a list of states"),
        ],
        ids=["another network", "one state", "numbers", "nothing"],
    )
    def test_lists_of_something_else(self, kind, states, message, save):
        with pytest.raises(InputError, match=message):
            interop.read(save(*states), kind)

    def test_another_dictionary_is_named_by_its_keys(self, tmp_path):
        torch.save({"model": {}, "ema": {}}, tmp_path / "other.pth")
        with pytest.raises(InputError, match="this is a dictionary of model, ema"):
            interop.read(tmp_path / "other.pth", "ncsnv2")

    def test_code(self, save):
        with pytest.raises(InputError, match="holds code"):
            interop.read(save(wrapped(network_state("ncsn_small")), {"state": Sequence([])}), "ncsn")

    def test_stages_that_no_network_has(self, save):
        state = {n: tensor for n, tensor in network_state("ncsnv2_deeper").items() if not n.startswith("res4")}
        with pytest.raises(InputError, match="the stages res1, res2, res3, res5"):
            interop.read(save(wrapped(state), OPTIMIZER), "ncsnv2")

    def test_a_ladder_that_is_neither_geometric_nor_in_equal_steps(self, save):
        state = network_state("ncsnv2_small") | {"sigmas": torch.linspace(50**0.5, 0.1, 232) ** 2}
        with pytest.raises(InputError, match=r"from 50 to 0\.01, 232 levels: not geometric nor in equal steps"):
            interop.read(save(wrapped(state), OPTIMIZER), "ncsnv2")

    @pytest.mark.parametrize(
        ("name", "kind", "names", "message"),
        [
            ("ncsn_small", "ncsn", {"normalizer.embed.weight": (3, 6)}, "6 coefficients for 6 channels"),
            ("ncsn_small", "ncsn", {"normalizer.bn.running_mean": (6,)}, r"running means \(batch norm\)"),
            ("ncsn_small", "ncsn", {"res1.0.conv1.weight_orig": (6, 6, 3, 3)}, r"spec_norm: true"),
            ("ncsnv2_small", "ncsnv2", {"normalizer.gamma": None, "normalizer.beta": None}, "norms are VarianceNorm"),
            (
                "ncsnv2_small",
                "ncsnv2",
                {f"normalizer.{n}": None for n in ("gamma", "alpha", "beta")},
                "InstanceNorm or NoneNorm",
            ),
            ("ncsnv2_small", "ncsnv2", {"normalizer.running_mean": (6,)}, "norms are BatchNorm"),
            ("ncsnv2_small", "ncsnv2", {"sigmas": None}, "lacks 'sigmas', the noise levels, as does the baseline"),
            ("ncsnv2_small", "ncsn", {"sigmas": None}, "without noise levels"),
        ],
    )
    def test_variants_of_the_authors_code_are_named(self, name, kind, names, message, save):
        state = network_state(name) | {n: None if shape is None else torch.ones(shape) for n, shape in names.items()}
        with pytest.raises(InputError, match=message):
            interop.read(save(wrapped({n: tensor for n, tensor in state.items() if tensor is not None}), OPTIMIZER), kind)

    @pytest.mark.parametrize("step", [None, -1, 1e30, [3], torch.tensor([3, 4])])
    def test_steps_that_are_not_a_number(self, step, save):
        with pytest.raises(InputError, match="the ncsnv2 checkpoint's step is "):
            interop.read(save(wrapped(network_state("ncsnv2_small")), OPTIMIZER, 1, step), "ncsnv2")

    def test_tensors_of_other_shapes(self, save):
        state = network_state("ncsnv2_small")
        sparse = state | {"end_conv.bias": state["end_conv.bias"].to_sparse()}
        with pytest.raises(InputError, match=r"sparse_coo.*weights must be dense"):
            interop.read(save(wrapped(sparse), OPTIMIZER), "ncsnv2")
        state["refine1.crp.convs.0.weight"] = torch.ones(12, 12, 1, 1)
        with pytest.raises(InputError, match=r"refine1\.crp\.convs\.0\.weight is 12 x 12 x 1 x 1 in the file, but .* is 12"):
            interop.load(save(wrapped(state), OPTIMIZER), "ncsnv2")


class TestUse:
    """A converted network serves every sampler and the likelihood."""

    def draw(self, sampler, score, seed=0):
        with torch.no_grad():
            return sampler(score, NoiseStream(seed, [0, 1], (1, 8, 8)))

    @pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.__name__)
    @pytest.mark.slow
    def test_predictors(self, predictor, small):
        sampler = sampling.PredictorCorrector(quick(predictor), sampling.Langevin(), grid=sampling.Uniform(4))
        samples = self.draw(sampler, small)
        assert samples.x.isfinite().all() and not torch.equal(samples.x, self.draw(sampler, small, seed=1).x)

    @pytest.mark.parametrize(
        "sampler",
        [
            sampling.AnnealedLangevin(steps=2),
            sampling.AnnealedLangevin("auto", steps=2, denoise=sampling.Tweedie()),
            sampling.ConsistentAnnealedLangevin(1e-4),
            sampling.LangevinDynamics(steps=3, sigma=0.5),
            sampling.ProbabilityFlow(quick(sampling.RK45)),
        ],
        ids=lambda s: type(s).__name__,
    )
    def test_samplers(self, sampler, small):
        sampler.check(small.process)
        samples = self.draw(sampler, small)
        assert samples.x.isfinite().all() and not torch.equal(samples.x, self.draw(sampler, small, seed=1).x)

    def test_trace(self, small):
        """The estimate of the likelihood's trace from random directions has the exact one as its mean."""
        x, noise = images(2, 1, 4, 4), NoiseStream(0, [0, 1], (1, 4, 4))
        _, backward = torch.func.vjp(lambda y: small.noise(y, torch.tensor(0.5)), x)
        exact, estimates = (
            torch.stack([inner(backward(v)[0], v) for v in trace.vectors(x, noise)])
            for trace in (ExactTrace(), Hutchinson(64))
        )
        error = estimates.std(0) / 8
        assert bool(((estimates.mean(0) - exact.sum(0)).abs() < 4 * error).all())

    def test_bits_per_dimension(self, small):
        likelihood = partial(log_likelihood, solver=DormandPrince(rtol=0.1, atol=0.1))
        bits = bits_per_dim(small, images(2, 1, 8, 8), Dequantization(), draws=1, likelihood=likelihood)
        assert math.isfinite(bits.mean) and bits.n == 2
