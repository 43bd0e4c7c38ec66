"""DDPM's checkpoints and diffusers' folders: the same numbers as the authors' code from the same files, and back again.

ddpm_*: `Model` of pesser/pytorch_diffusion in evaluation mode, resolution the height of `shape`, channels, levels and blocks
as the tensors' shapes say, attention at 8 of 16 (small), 24 and 6 (levels), 16 (cifar10), at `index`; the images are
2 x - 1 of `torch.rand` of seed 0. diffusers itself is asked here.
"""

import json
import math

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    ScoreSdeVeScheduler,
)
from peers import SIMPLE, unet
from recorded import recorded
from safetensors.torch import load_file, save_file

from lightning_score import interop
from lightning_score.errors import InputError
from lightning_score.interop import diffusers_writer
from lightning_score.interop.base import part

pytestmark = pytest.mark.filterwarnings("ignore:.*at least two channels per group")
FOLDERS = {
    "defaults": (SIMPLE, DDPMScheduler()),
    "a channel per group": ({**SIMPLE, "norm_num_groups": 32}, DDIMScheduler(beta_schedule="scaled_linear")),
    "ddpm": (
        SIMPLE
        | {
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
        DDPMScheduler(variance_type="fixed_large"),
    ),
    "levels": (
        {
            "sample_size": 24,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (32, 32, 64, 96),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 16,
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        },
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False),
    ),
    "classes": (
        SIMPLE
        | {"sample_size": (12, 20), "num_class_embeds": 5, "add_attention": False}
        | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
        DDPMScheduler(100, prediction_type="sample"),
    ),
    "adm": (
        SIMPLE
        | {
            "block_out_channels": (32, 64, 96),
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 16,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "num_class_embeds": 10,
        },
        DDPMScheduler(3, trained_betas=[0.01, 0.02, 0.3]),
    ),
}


def images(*shape):
    return 2 * torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) - 1


def distance(ours, theirs):
    """The largest difference over the largest output, of the worst sample."""
    return float(((ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)).max())


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder, as diffusers saves it, of a simple network."""
    DDPMPipeline(unet(**SIMPLE), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(path, **entries):
    """Changes entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


class TestDDPM:
    @pytest.mark.parametrize("name", ["small", "levels", "cifar10"])
    def test_network(self, name, tmp_path):
        case = recorded(f"ddpm_{name}")
        torch.save(case.state, tmp_path / "model.ckpt")
        score = interop.load(tmp_path / "model.ckpt", "ddpm", size=case.about["shape"][1])
        with torch.no_grad():
            output = score.network(images(*case.about["shape"]), case.tensors["index"])
            assert distance(output, case.tensors["output"]) < 1e-5
            noise = score.noise(images(*case.about["shape"]), (case.tensors["index"] + 1) / 1000)
            assert distance(noise, case.tensors["output"]) < 1e-5
        assert sum(p.numel() for p in score.network.parameters()) == case.about["parameters"]

    def test_states_of_ddim(self, tmp_path):
        """A list: the network inside DataParallel, optimizer, epoch, step, and averages by plain names."""
        state = recorded("ddpm_small").state
        optimizer = {"param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8}]}
        averages = {name: tensor + 0.1 for name, tensor in state.items()}
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save([wrapped, optimizer, 3, 700, averages], tmp_path / "ckpt.pth")
        imported = interop.read(tmp_path / "ckpt.pth", "ddpm")
        assert imported.step == 700 and imported.shape == (3, 32, 32)
        assert imported.model["optimizer"]["init_args"]["lr"] == 2e-4
        for name, tensor in imported.weights.items():
            torch.testing.assert_close(imported.averages[name], tensor + 0.1)

    def test_missing_and_surplus_tensors_are_named(self, tmp_path):
        state, path = recorded("ddpm_small").state, tmp_path / "model.ckpt"
        for missing in ["conv_in.bias", "mid.attn_1.k.weight", "up.0.block.1.temb_proj.bias", "norm_out.weight"]:
            torch.save({name: tensor for name, tensor in state.items() if name != missing}, path)
            with pytest.raises(InputError, match=f"lacks '{missing}'"):
                interop.read(path, "ddpm")
        torch.save({**state, "up.7.extra": torch.ones(1)}, path)
        with pytest.raises(InputError, match=r"converted: 1 unused tensors, up\.7\.extra"):
            interop.read(path, "ddpm")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t[:1], "1 x 32 in the file, but the network's is 128 x 32"),
            (lambda t: t.sum(), "a number in the file"),
            (torch.Tensor.long, "of type torch.int64 .*; weights must be dense floating-point numbers"),
            (lambda t: t * math.nan, "contains NaN or infinity"),
            (lambda t: None, "temb.dense.0.weight.*NoneType.*neither a network.s state dict"),
        ],
    )
    def test_tensors_of_other_kinds_are_named(self, change, message, tmp_path):
        state = recorded("ddpm_small").state
        torch.save(state | {"temb.dense.0.weight": change(state["temb.dense.0.weight"])}, tmp_path / "model.ckpt")
        with pytest.raises(InputError, match=message):
            interop.read(tmp_path / "model.ckpt", "ddpm")

    def test_half_precision_becomes_single(self, tmp_path):
        torch.save({name: tensor.half() for name, tensor in recorded("ddpm_small").state.items()}, tmp_path / "model.ckpt")
        assert all(
            tensor.dtype == torch.float32 for tensor in interop.read(tmp_path / "model.ckpt", "ddpm").weights.values()
        )

    @pytest.mark.parametrize(
        ("saved", "message"),
        [({"weight": torch.ones(1)}, "lacks 'conv_in.weight'"), ([1, 2], "neither"), ({"a": 1}, "neither")],
        ids=["another network", "list", "dictionary"],
    )
    def test_refuses(self, saved, message, tmp_path):
        torch.save(saved, tmp_path / "model.ckpt")
        with pytest.raises(InputError, match=message):
            interop.read(tmp_path / "model.ckpt", "ddpm")


class TestDiffusers:
    @pytest.mark.parametrize("name", FOLDERS)
    def test_there_and_back(self, name, tmp_path):
        """Their pipeline read here gives their outputs and scores; written again, it is the same pipeline."""
        options, scheduler = FOLDERS[name]
        pipeline = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
        theirs = unet(**options)
        pipeline(theirs, scheduler).save_pretrained(tmp_path / "theirs")
        imported = interop.read(tmp_path / "theirs", "diffusers")
        score = interop.build(imported)
        steps = scheduler.config.num_train_timesteps
        x, index = images(*imported.shape), torch.tensor([0, steps - 1])
        labels = torch.tensor([1, 4]) if imported.num_classes else None
        with torch.no_grad():
            output = theirs(x, index, class_labels=labels).sample
            assert distance(score.network(x, index, labels), output) < 1e-5
            assert distance(score(x, (index + 1) / steps, labels), expected_score(scheduler, x, index, output)) < 1e-5
        diffusers_writer.write(tmp_path / "ours", imported)
        ours = DiffusionPipeline.from_pretrained(tmp_path / "ours")
        assert type(ours) is pipeline and type(ours.scheduler) is type(scheduler)
        with torch.no_grad():
            assert torch.equal(ours.unet(x, index, class_labels=labels).sample, output)
        torch.testing.assert_close(ours.scheduler.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-5, atol=0)
        for entry in ("prediction_type", "clip_sample", "variance_type"):
            assert ours.scheduler.config.get(entry) == scheduler.config.get(entry)

    def test_network_alone_in_a_folder_of_old(self, folder, tmp_path):
        """A UNet's own folder, with weights of torch and the attention's names before diffusers 0.17."""
        old = tmp_path / "old"
        old.mkdir()
        (old / "config.json").write_text((folder / "unet" / "config.json").read_text())
        state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        for new, before in names.items():
            state = {name.replace(new, before): tensor for name, tensor in state.items()}
        torch.save(state, old / "diffusion_pytorch_model.bin")
        before, now = interop.read(old, "diffusers"), interop.read(folder, "diffusers")
        assert all(torch.equal(before.weights[name], tensor) for name, tensor in now.weights.items())
        assert "no scheduler_config.json" in before.notes[0]

    def test_half_precision_shards_and_averages(self, folder):
        network = unet(**SIMPLE)
        network.save_pretrained(folder / "unet_ema", max_shard_size="1MB")
        assert len(list((folder / "unet_ema").glob("*.safetensors"))) > 1
        state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        half = {name: (tensor + 1).half() for name, tensor in state.items()}
        save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
        imported = interop.read(folder, "diffusers")
        bias, raw = imported.averages["conv_in.bias"], imported.weights["conv_in.bias"]
        assert torch.equal(bias, state["conv_in.bias"]) and raw.dtype == torch.float32
        torch.testing.assert_close(raw, bias + 1, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            (
                {"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]},
                "AttnDownBlock2D.* cannot be converted, only AttnSkipDownBlock2D.* can be combined",
            ),
            ({"down_block_types": ["KDownBlock2D", "AttnDownBlock2D"]}, "KDownBlock2D.* cannot be converted"),
            ({"out_channels": 6}, "out_channels: 6"),
            ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "attention on the way up"),
            ({"act_fn": "gelu"}, 'act_fn: "gelu" cannot be converted, only "silu"'),
            ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups: null"),
            ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel: only a UNet2DModel"),
            ({"sample_size": None}, "--size 32"),
            ({"layers_per_block": 3}, r"lacks 'down_blocks\.0\.resnets\.2"),
            ({"layers_per_block": 10**9}, "layers_per_block: 1000000000 cannot be converted, the file has too few tensors"),
            ({"layers_per_block": 1}, "norm1.weight is 128 in the file, but the network's is 96"),
            (
                {"block_out_channels": [32, 40]},
                r"block_out_channels: \[32, 40\] .*, only multiples of the first",
            ),
            ({"block_out_channels": "64"}, r'block_out_channels: "64"; must be a list of positive integers'),
            ({"layers_per_block": None}, "layers_per_block: null; must be a positive integer"),
            ({"num_class_embeds": 0.5}, "num_class_embeds: 0.5; must be a positive integer or null"),
            ({"resnet_time_scale_shift": "other"}, 'resnet_time_scale_shift: "other" cannot be converted'),
            ({"block_out_channels": [64, 64]}, "linear_1.weight is 128 x 32 in the file, but the network's is 256 x 64"),
        ],
        ids=str,
    )
    def test_refuses_networks(self, entries, message, folder):
        edit(folder / "unet" / "config.json", **entries)
        with pytest.raises(InputError, match=message):
            interop.read(folder, "diffusers")

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"beta_end": None}, "beta_end: null; must be a number"),
            ({"variance_type": "learned"}, 'variance_type: "learned" cannot be converted'),
            ({"beta_schedule": "laplace"}, 'beta_schedule: "laplace" cannot be converted, only "linear"'),
            ({"prediction_type": "flow"}, 'prediction_type: "flow"'),
            ({"rescale_betas_zero_snr": True}, "with prediction_type epsilon, because noise alone"),
            ({"thresholding": True}, "thresholding: true cannot be converted"),
            ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, 'timestep_type: "continuous"'),
            ({"_class_name": "LCMScheduler"}, "LCMScheduler: only schedulers"),
        ],
        ids=str,
    )
    def test_refuses_schedulers(self, entries, message, folder):
        edit(folder / "scheduler" / "scheduler_config.json", **entries)
        with pytest.raises(InputError, match=message):
            interop.read(folder, "diffusers")

    def test_a_unet_within_a_pipeline_has_its_scheduler(self, folder):
        edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction", variance_type=None)
        assert interop.read(folder / "unet", "diffusers").model == interop.read(folder, "diffusers").model
        assert interop.read(folder / "unet", "diffusers").notes == ()

    def test_weights_come_before_their_variants(self, folder):
        plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
        for variant in ("non_ema", "fp16"):
            save_file({"other": torch.zeros(1)}, plain.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
        assert "conv_in.weight" in interop.read(folder, "diffusers").weights

    @pytest.mark.parametrize("part", ["", "unet"])
    def test_refuses_latents(self, part, folder):
        edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
        with pytest.raises(InputError, match="works on latents of its vqvae"):
            interop.read(folder / part, "diffusers")

    def test_refuses_other_folders(self, folder, tmp_path):
        ScoreSdeVeScheduler().save_pretrained(folder / "scheduler")
        with pytest.raises(InputError, match="ScoreSdeVeScheduler: only schedulers with a beta_schedule"):
            interop.read(folder, "diffusers")
        with pytest.raises(InputError, match=r"config\.json: there is no such file"):
            interop.read(tmp_path, "diffusers")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(InputError, match="there is no diffusion_pytorch_model"):
            interop.read(folder, "diffusers")

    @pytest.mark.parametrize(
        ("name", "settings", "message"),
        [
            ("network", part("NCSNpp"), "network NCSNpp: diffusers has"),
            ("network", part("UNet", periodic=True), "periodic: a UNet2DModel has zeros outside"),
            ("process", part("VP"), "process VP: diffusers' schedulers are discrete chains"),
            ("parametrization", part("Noise"), "whose noise_label is Index"),
            ("parametrization", part("EDM"), "parametrization EDM: diffusers has schedulers for Noise"),
            (
                "sampler",
                part("PredictorCorrector", clip=[-1.0, 0.5]),
                r"clip=\[-1\.0, 0\.5\]: diffusers' schedulers clip at",
            ),
        ],
        ids=["network", "periodic", "process", "label", "parametrization", "clip"],
    )
    def test_refuses_to_write(self, name, settings, message, folder, tmp_path):
        imported = interop.read(folder, "diffusers")
        imported.model[name] = settings
        with pytest.raises(InputError, match=message):
            diffusers_writer.write(tmp_path / "out", imported)
        assert not list(tmp_path.glob("*out*"))


class TestDiffusersNCSNpp:
    """Of Skip blocks, as google/ncsnpp-ffhq-256, but smaller."""

    def folder(self, tmp_path, **options):
        config = {
            "sample_size": 16,
            "block_out_channels": (128, 128, 256),
            "layers_per_block": 1,
            "time_embedding_type": "fourier",
            "norm_eps": 1e-6,
            "norm_num_groups": None,
            "mid_block_scale_factor": 2**0.5,
            "center_input_sample": False,
            "attention_head_dim": None,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
            "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        }
        network = unet(**config | options)
        network.save_pretrained(tmp_path / "unet")
        ScoreSdeVeScheduler(num_train_timesteps=100, sigma_max=300.0, snr=0.2).save_pretrained(tmp_path / "scheduler")
        return network

    @pytest.mark.parametrize("heads", [None, 32])
    def test_score(self, heads, tmp_path):
        theirs = self.folder(tmp_path, attention_head_dim=heads)
        imported = interop.read(tmp_path, "diffusers")
        score = interop.build(imported)
        x, sigma = images(3, 16, 16), torch.tensor([0.3, 40.0])
        t = score.process.time_of(sigma.double())
        with torch.no_grad():
            output = theirs(x, sigma).sample
            assert distance(score.network(x, sigma.log()) / sigma[:, None, None, None], output) < 1e-5
            assert distance(score(x, t), output) < 1e-5
        assert imported.model["process"]["init_args"] == {"sigma_min": 0.01, "sigma_max": 300.0}
        assert imported.model["sampler"]["init_args"]["corrector"]["init_args"] == {"snr": 0.2}

    def test_small_ones_are_refused(self, tmp_path):
        self.folder(tmp_path)
        edit(tmp_path / "unet" / "config.json", block_out_channels=[64, 64, 128])
        with pytest.raises(InputError, match=r"below 128: \[64, 64\] cannot be converted, since diffusers normalizes"):
            interop.read(tmp_path, "diffusers")


def expected_score(scheduler, x, index, output):
    """The score that a scheduler's prediction stands for."""
    kept = (1 - scheduler.betas.double()).cumprod(0)[index][:, None, None, None]  # theirs rounds 1 - kept
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    noise = {
        "epsilon": output,
        "sample": (x - alpha * output) / sigma,
        "v_prediction": alpha * output + sigma * x,
    }[scheduler.config.prediction_type]
    return -noise / sigma
