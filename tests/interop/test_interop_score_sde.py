"""score_sde's and EDM's checkpoints: the same numbers as the authors' code from the same weights.

score_sde_*: `get_score_fn` of yang-song/score_sde_pytorch in evaluation mode, of the model NCSNpp (names with pp) or DDPM,
the SDE by the name, at the times `t` (0.3 and 0.85, or entries 41 and 850 of 1000 where not continuous). The configs are the
shipped ones with image_size the height of `shape`, sigma_max and num_scales as recorded, and of the network: fir, residual
input and attention for ncsnpp; skips: input_skip and output_skip; boxes: the same without fir, combined by cat; residuals:
both residual, without fir; blocks: DDPM's blocks in NCSNpp. Two calls of F.interpolate in it, which name no
mode, need one. edm_*: `EDMPrecond` of NVlabs/edm on SongUNet, at `sigma`, without and with the labels 1 and 4.
The images are `torch.rand` of seed 0, and 2 x - 1 of it where data lie around zero (except for EDM).
"""

import math

import numpy as np
import pytest
import torch
from peers import edm_state, saved
from recorded import recorded

from lightning_score import interop
from lightning_score.errors import InputError
from lightning_score.interop.plusplus_layout import Layout, find_layout
from lightning_score.networks import NCSN, DDPMpp, NCSNpp, NCSNv2, NCSNv2Deeper

SCORE_SDE = {
    "ve_ncsnpp_continuous_small": {},
    "ve_ncsnpp_continuous_skips": {},
    "ve_ncsnpp_continuous_boxes": {"network": {"fir": False}},
    "ve_ncsnpp_continuous_residuals": {},
    "ve_ncsnpp_continuous_cifar10": {},
    "ve_ncsnpp_small": {},
    "ve_ddpm_small": {},
    "vp_ddpmpp_continuous_small": {},
    "vp_ddpmpp_continuous_cifar10": {},
    "vp_ncsnpp_continuous_small": {},
    "vp_ddpmpp_blocks_continuous": {"network": {"rescale": True, "group_size": 4}},
    "vp_ddpm_small": {},
    "vp_ddpm_cifar10": {},
    "subvp_ddpmpp_continuous_small": {},
}
PROCESSES = {"ve": "VE", "vp": "VP", "subvp": "SubVP"}
EDM = ["vp_cifar10_cond", "vp_skips", "ve_small", "ve_small_cond", "ve_skips"]


def marked(name):
    """A case, slow for a network of published size."""
    return pytest.param(name, marks=[pytest.mark.slow] if "cifar10" in name else [])


def images(shape, centered=False):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return 2 * x - 1 if centered else x


def distance(ours, theirs):
    """The largest difference over the largest output, of the worst sample."""
    return float(((ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)).max())


def parameters(module):
    return sum(p.numel() for p in module.parameters()) + sum(b.numel() for b in buffers(module))


def buffers(module):
    return [tensor for name, tensor in module.state_dict().items() if name.endswith("frequencies")]


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint into folders named as the authors do, and gives its path."""

    def write(name, checkpoint):
        sde, _, rest = name.partition("_")
        folder = tmp_path / sde / f"cifar10_{rest}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, folder / "checkpoint_17.pth")
        return folder / "checkpoint_17.pth"

    return write


class TestScoreSDE:
    @pytest.mark.parametrize("name", list(map(marked, SCORE_SDE)))
    def test_score(self, name, save):
        case = recorded(f"score_sde_{name}")
        path, size = save(name, saved(name)), case.about["shape"][1]
        imported = interop.read(path, "score_sde", size)
        score = interop.build(imported, **SCORE_SDE[name])
        t = case.tensors["t"]
        if "continuous" not in name:  # the authors' t of entry i of 1000 is i/999, ours (i + 1)/1000
            t = (t * 999 + 1) / 1000
        with torch.no_grad():
            output = score(images(case.about["shape"], imported.data_range[0] < 0), t)
        assert distance(output, case.tensors["output"]) < 1e-5
        assert parameters(score.network) == case.about["parameters"]
        continuous = imported.model["process"]["class_path"] in PROCESSES.values()
        assert continuous == ("continuous" in name)
        if continuous:
            assert imported.model["process"]["class_path"] == PROCESSES[name.partition("_")[0]]
        assert imported.step == 17 and imported.model["optimizer"]["init_args"]["lr"] == 1e-4

    def test_averages_are_in_the_order_of_the_parameters(self, save):
        name = "ve_ncsnpp_continuous_small"
        state = recorded(f"score_sde_{name}").state
        averages = {key: tensor + 0.1 for key, tensor in state.items()}
        imported = interop.read(save(name, saved(name, state, averages)), "score_sde", 16)
        for key, tensor in imported.weights.items():
            moved = 0.0 if key.endswith("frequencies") else 0.1
            torch.testing.assert_close(imported.averages[key], tensor + moved)

    def test_without_folders_that_say_more_it_is_the_continuous_vp(self, save, tmp_path):
        torch.save(saved("vp_ddpmpp_continuous_small"), tmp_path / "checkpoint.pth")
        imported = interop.read(tmp_path / "checkpoint.pth", "score_sde")
        assert imported.model["process"]["class_path"] == "VP" and imported.shape == (3, 32, 32)
        assert any("--sde subvp or --sde vp_discrete or --sde ve_discrete" in note for note in imported.notes)

    @pytest.mark.parametrize(
        ("name", "sde"),
        [
            ("ve_ncsnpp_small", "ve_discrete"),
            ("ve_ddpm_small", "ve_discrete"),
            ("vp_ddpm_small", "vp_discrete"),
            ("vp_ddpmpp_continuous_small", "vp"),
            ("subvp_ddpmpp_continuous_small", "subvp"),
            ("ve_ncsnpp_continuous_small", "ve"),
        ],
    )
    def test_an_option_in_place_of_the_folder(self, name, sde, tmp_path):
        case = recorded(f"score_sde_{name}")
        torch.save(saved(name), tmp_path / "checkpoint.pth")
        imported = interop.read(tmp_path / "checkpoint.pth", "score_sde", case.about["shape"][1], sde=sde)
        t = case.tensors["t"] if "continuous" in name else (case.tensors["t"] * 999 + 1) / 1000
        with torch.no_grad():
            output = interop.build(imported)(images(case.about["shape"], imported.data_range[0] < 0), t)
        assert distance(output, case.tensors["output"]) < 1e-5
        if not sde.startswith("ve"):  # what is assumed without it is not what the file is
            others = interop.read(tmp_path / "checkpoint.pth", "score_sde").notes
            assert sde == "vp" or any(f"--sde {sde}" in note for note in others)

    @pytest.mark.parametrize(
        ("folder", "size"),
        [("cifar10_ddpmpp_continuous", 32), ("celeba_ncsnpp", 64), ("celebahq_256_ncsnpp_continuous", 256), ("mine", 32)],
    )
    def test_folders_say_the_size(self, folder, size, tmp_path):
        (tmp_path / folder).mkdir()
        torch.save(saved("vp_ddpmpp_continuous_small"), tmp_path / folder / "checkpoint_1.pth")
        assert interop.read(tmp_path / folder / "checkpoint_1.pth", "score_sde").shape == (3, size, size)

    @pytest.mark.parametrize("where", ["model", "averages"])
    def test_every_missing_or_surplus_tensor_is_named(self, where, save):
        name = "ve_ncsnpp_continuous_small"
        state = recorded(f"score_sde_{name}").state
        surplus = {**state, "all_modules.3.extra.weight": torch.ones(3)}
        if where == "averages":
            with pytest.raises(InputError, match="do not fit the weights"):
                interop.read(save(name, saved(name, state, surplus)), "score_sde")
            return
        with pytest.raises(InputError, match=r"converted: 1 unused tensors, all_modules\.3\.extra\.weight"):
            interop.read(save(name, saved(name, surplus)), "score_sde")
        for missing in ["all_modules.4.Dense_0.bias", "all_modules.8.NIN_2.b", "all_modules.1.bias"]:
            with pytest.raises(InputError, match=f"lacks '{missing}'"):
                interop.read(save(name, saved(name, {k: v for k, v in state.items() if k != missing})), "score_sde")

    def test_modules_in_another_order(self, save):
        name = "ve_ncsnpp_continuous_small"
        state = {k.replace("all_modules.5.", "all_modules.99."): v for k, v in recorded(f"score_sde_{name}").state.items()}
        with pytest.raises(InputError, match="has no tensors"):
            interop.read(save(name, saved(name, state)), "score_sde")

    @pytest.mark.parametrize(
        ("checkpoint", "message"),
        [
            ({"model": {}}, "a dictionary of ema, model"),
            ([1], "this is a list of int"),
            (saved("vp_ddpm_small", step=print), "code"),
        ],
        ids=["other", "list", "code"],
    )
    def test_refuses(self, checkpoint, message, save):
        with pytest.raises(InputError, match=message):
            interop.read(save("vp_x", checkpoint), "score_sde")

    def test_a_numpy_number_and_nothing_else_of_numpy(self, save):
        interop.read(save("vp_ddpm_small", saved("vp_ddpm_small", step=np.float64(17))), "score_sde")
        with pytest.raises(InputError, match="holds code"):
            interop.read(save("vp_ddpm_small", saved("vp_ddpm_small", extra=np.ones(3))), "score_sde")


class TestRefineNets:
    @pytest.mark.parametrize(
        ("name", "network"), [("ncsn_small", NCSN), ("ncsnv2_small", NCSNv2), ("ncsnv2_deeper", NCSNv2Deeper)]
    )
    def test_those_of_score_sde_are_on_a_ladder(self, name, network, save):
        sigmas = torch.linspace(math.log(50), math.log(0.01), 232, dtype=torch.float64).exp()
        state = recorded(name).state
        checkpoint = saved("vp_ddpm_small", state, state)
        checkpoint["model"]["module.sigmas"] = sigmas
        imported = interop.read(save("ve_ncsnv2", checkpoint), "score_sde")
        assert imported.model["process"]["init_args"] == {"sigma_min": 0.01, "sigma_max": 50.0, "levels": 232}
        assert type(interop.build(imported).network) is network


def test_layouts_are_distinguished():
    """The modules of any layout are found to be its own, whatever the levels, blocks and attention."""
    for levels in (1, 2, 4):
        for blocks in (1, 3):
            for joins in ("", "combine", "conv resampled"):
                for outputs in ("", "skip", "conv"):
                    attention = tuple(level % 2 == 1 for level in range(levels))
                    for resample in (True, False):
                        layout = Layout(levels, blocks, resample, True, joins if levels > 1 else "", outputs, attention)
                        kinds = [kind for kind, _ in layout.modules()]
                        found = find_layout(kinds)
                        assert [kind for kind, _ in found.modules()] == kinds
                        assert (found.levels, found.blocks, found.attention) == (levels, blocks, attention)


class TestEDM:
    @pytest.mark.parametrize("name", list(map(marked, EDM)))
    def test_denoised(self, name, tmp_path):
        case = recorded(f"edm_{name}")
        torch.save(edm_state(name), tmp_path / "network.pt")
        score = interop.load(tmp_path / "network.pt", "edm")
        x, sigma = images(case.about["shape"]), case.tensors["sigma"]
        t = score.process.time_of(sigma.double())
        with torch.no_grad():
            assert distance(score.denoised(x, t), case.tensors["output"]) < 1e-5
            if score.num_classes:
                labeled = score.denoised(x, t, torch.tensor([1, 4]))
                assert distance(labeled, case.tensors["labelled"]) < 1e-5
                assert distance(labeled, case.tensors["output"]) > 1e-3
        assert isinstance(score.network, DDPMpp) and isinstance(score.network, NCSNpp) == name.startswith("ve")
        assert sum(p.numel() for p in score.network.parameters()) == case.about["parameters"]

    @pytest.mark.parametrize("precond", ["vp", "ve"])
    @pytest.mark.parametrize("name", ["vp_skips", "ve_small_cond"])
    def test_the_other_preconditionings(self, name, precond, tmp_path):
        """Karras et al. 2022 (2206.00364), table 1, columns VP and VE: D(x; s) = x + c_out F(c_in x; c_noise)."""
        torch.save(edm_state(name), tmp_path / "network.pt")
        score = interop.load(tmp_path / "network.pt", "edm", precond=precond).double()
        s = torch.tensor([0.3, 40.0], dtype=torch.float64)
        x, wide = 2 * images(recorded(f"edm_{name}").about["shape"]).double() - 1, s[:, None, None, None]
        beta_d, beta_min = 19.9, 0.1
        t = (
            (beta_min**2 + 2 * beta_d * (1 + s**2).log()).sqrt() - beta_min
        ) / beta_d  # exp(beta_d t^2/2 + beta_min t) = 1 + s^2
        c_in, c_out, c_noise = {"vp": ((1 + wide**2).rsqrt(), -wide, 999 * t), "ve": (1.0, wide, (s / 2).log())}[precond]
        with torch.no_grad():
            expected = x + c_out * score.network(c_in * x, c_noise)
            time = score.process.time_of(s)
            denoised = score.denoised(score.process.alpha(time)[:, None, None, None] * x, time)
        assert distance(denoised, expected) < 1e-10
        sigma_min, sigma_max = {"vp": (0.001, 152.2), "ve": (0.02, 100.0)}[precond]
        ends = score.process.noise_level(torch.tensor([score.process.t_min, 1.0]).double())
        torch.testing.assert_close(ends, torch.tensor([sigma_min, sigma_max]).double(), rtol=1e-2, atol=0)

    def test_names_with_and_without_the_preconditioner(self, tmp_path):
        state = edm_state("ve_small")
        assert all(name.startswith("model.") for name in state)
        torch.save({name.removeprefix("model."): tensor for name, tensor in state.items()}, tmp_path / "network.pt")
        assert interop.load(tmp_path / "network.pt", "edm").network.shape == (3, 16, 16)

    def test_a_pickle_is_refused_with_the_recipe(self, tmp_path):
        (tmp_path / "network.pkl").write_bytes(b"\x80\x04N.")
        with pytest.raises(InputError, match=r"pickle can run any code.*torch\.save\(net\.state_dict"):
            interop.read(tmp_path / "network.pkl", "edm")
        torch.save({"ema": torch.nn.Linear(1, 1)}, tmp_path / "training-state.pt")
        with pytest.raises(InputError, match=r"holds code.*torch\.save\(net\.state_dict"):
            interop.read(tmp_path / "training-state.pt", "edm")

    def test_every_missing_or_surplus_tensor_is_named(self, tmp_path):
        state, path = edm_state("ve_small_cond"), tmp_path / "network.pt"
        for missing in [
            "map_label.bias",
            "enc.24x24_block1.affine.bias",
            "dec.6x6_in0.qkv.bias",
            "enc.12x12_aux_residual.bias",
        ]:
            torch.save({name: tensor for name, tensor in state.items() if name != f"model.{missing}"}, path)
            with pytest.raises(InputError, match=f"lacks '{missing}'"):
                interop.read(path, "edm")
        torch.save({**state, "model.enc.24x24_block7.norm9.weight": torch.ones(2)}, path)
        with pytest.raises(InputError, match=r"converted: 1 unused tensors, enc\.24x24_block7\.norm9\.weight"):
            interop.read(path, "edm")

    def test_other_networks_of_edm(self, tmp_path):
        torch.save({**edm_state("ve_small"), "model.out_conv.weight": torch.ones(1)}, tmp_path / "network.pt")
        with pytest.raises(InputError, match="DhariwalUNet"):
            interop.read(tmp_path / "network.pt", "edm")
