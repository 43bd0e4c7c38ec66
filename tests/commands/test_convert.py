"""`convert`: from a peer's file to samples, measurements and further training, and to diffusers, as a user does it."""

import shlex
from itertools import chain, zip_longest

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from peers import OPTIMIZER, SIMPLE, edm_state, network_state, saved, unet, wrapped
from recorded import recorded

from lightning_score import ScoreModel, interop
from lightning_score.cli import run
from lightning_score.interop.refinenet import ELU
from lightning_score.process import CosineTable

pytestmark = pytest.mark.filterwarnings("ignore:.*at least two channels per group")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def score_sde(tmp_path):
    """A checkpoint of score_sde's, of a small NCSN++ on 16x16 color images, whose averages differ from its weights."""
    name = "ve_ncsnpp_continuous_small"
    state = recorded(f"score_sde_{name}").state
    averages = {key: tensor * 1.1 for key, tensor in state.items()}
    folder = tmp_path / "ve" / "cifar10_ncsnpp_continuous"
    folder.mkdir(parents=True)
    torch.save(saved(name, state, averages, step=1_300_000), folder / "checkpoint_26.pth")
    return str(folder / "checkpoint_26.pth")


@pytest.fixture
def images(tmp_path):
    """A folder of sixteen 16x16 images."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = np.random.RandomState(0).randint(0, 256, (16, 16, 16, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    return str(tmp_path / "images")


FEW = ["--model.sampler.grid.steps", "3"]


def test_prints_the_parts_of_a_checkpoint_and_what_was_assumed(score_sde, capsys):
    assert run(["convert", "--from", "score_sde", score_sde, "out.ckpt", "--size", "16"]) == 0
    printed = capsys.readouterr().out
    for expected in [
        "NCSNpp, 190,819 parameters, the averaged (EMA) and the raw weights",
        "3 x 16 x 16, values 0 to 1",
        "VE(sigma_min=0.01, sigma_max=50.0)",
        "PredictorCorrector(predictor=ReverseDiffusion, corrector=BatchLangevin(snr=0.16)",
        "1300000 steps",
        "assumed: images of 16 x 16 pixels: --size 64",
        "predict --ckpt_path out.ckpt",
    ]:
        assert expected in printed, expected


@pytest.mark.slow
@pytest.mark.slow
def test_averages_sample_and_raw_weights_train_on(score_sde, images):
    """The checkpoint holds both; `predict` and `test` take the averages, `fit` resumes from the weights."""
    options = ["--data", "ImageFolder", "--data.path", images, "--data.shape", "[3, 16, 16]", "--data.batch_size", "4", *FEW]
    options += ["--model.optimizer.lr", "0.0"]
    assert run(["convert", "--from", "score_sde", score_sde, "out.ckpt", "--size", "16", *options]) == 0
    imported = interop.read(score_sde, "score_sde", 16)
    model = ScoreModel.load_from_checkpoint("out.ckpt", weights_only=True)
    for name, tensor in model.score_function.network.state_dict().items():
        assert torch.equal(tensor, imported.averages[name])
    assert run(["predict", "--ckpt_path=out.ckpt", "--num_samples=4", "--output=drawn"]) == 0
    assert np.load("drawn/samples.npz")["images"].shape == (4, 16, 16, 3)
    measure = ["--evaluate.features=RawFeatures", "--evaluate.features.shape=[3,16,16]", "--evaluate.num_samples=4"]
    assert run(["test", "--ckpt_path=out.ckpt", "--output=measured", *measure]) == 0
    steps = ["--ema.decay=0.5", "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--samples.num_samples=1"]
    assert run(["fit", "--ckpt_path=out.ckpt", "--runs=runs", "--evaluate.features=null", *steps]) == 0
    trained = torch.load("runs/score_sde/latest/last.ckpt", weights_only=True)
    assert trained["global_step"] == 2
    for name, tensor in imported.weights.items():
        key = f"score_function.network.{name}"
        torch.testing.assert_close(trained["current_model_state"][key], tensor, rtol=0, atol=0)
        torch.testing.assert_close(trained["state_dict"][key], imported.averages[name] / 4 + 3 * tensor / 4)


def test_options_change_what_the_file_leaves_open(score_sde, capsys):
    changes = ["--model.network.fir", "false", "--model.sampler.corrector.snr", "0.1"]
    assert run(["convert", "--from", "score_sde", score_sde, "out.ckpt", "--size=16", *changes]) == 0
    assert "corrector=BatchLangevin(snr=0.1)" in capsys.readouterr().out
    model = ScoreModel.load_from_checkpoint("out.ckpt", weights_only=True)
    assert "AvgPool2d" in str(model.score_function.network.down[0].resample)
    assert run(["convert", "--from", "score_sde", score_sde, "other.ckpt", "--size=16", "--model.network.channels=32"]) == 2
    assert "the weights do not fit the network that the options describe" in capsys.readouterr().err


def diffusers_alone(folder, classes=None):
    """A UNet's folder without a scheduler."""
    unet(**SIMPLE, num_class_embeds=classes).save_pretrained(folder)
    return folder


def network_file(path, content):
    torch.save(content, path)
    return path


ADVISED = {
    "ncsn": lambda f: ("ncsn", network_file(f / "n.pth", [wrapped(network_state("ncsn_dilated_deeper")), OPTIMIZER])),
    "ncsnv2": lambda f: ("ncsnv2", network_file(f / "n.pth", [wrapped(network_state("ncsnv2_small")), OPTIMIZER])),
    "ve": lambda f: ("score_sde", network_file(f / "n.pth", saved("ve_ncsnpp_continuous_small"))),
    "vp": lambda f: ("score_sde", network_file(f / "n.pth", saved("vp_ddpm_small"))),
    "ddpm": lambda f: ("ddpm", network_file(f / "n.pth", recorded("ddpm_small").state)),
    "edm": lambda f: ("edm", network_file(f / "n.pth", edm_state("ve_small"))),
    "torchcfm": lambda f: ("torchcfm", network_file(f / "n.pth", recorded("torchcfm_small").state)),
    "diffusers": lambda f: ("diffusers", diffusers_alone(f / "unet", 3)),
}
CHANGES = [("vp", "--sde"), ("edm", "--precond"), ("diffusers", "--model.process")]


def alternatives(note):
    """The commands that end a note: `what was assumed: --this 1 --that 2 or --other 3`."""
    advice = note.partition(": --")[2]
    return [shlex.split(f"--{options}") for options in advice.split(" or --")] if advice else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [*CHANGES, *(pytest.param(name, "--", marks=pytest.mark.slow) for name in ADVISED)],
)
def test_what_a_note_advises_can_be_done(name, option, tmp_path, capsys):
    """The options that the notes name convert the same file, those of all notes at once, and each alternative."""
    kind, path = ADVISED[name](tmp_path)
    notes = interop.read(path, kind).notes
    assert all(": --" in note or note == ELU for note in notes)
    advised = [[options for options in alternatives(note) if option in " ".join(options)] for note in notes]
    commands = list(zip_longest(*advised, fillvalue=[]))
    assert commands
    for i, options in enumerate(commands):
        assert run(["convert", "--from", kind, str(path), f"{i}.ckpt", *chain(*options)]) == 0, options
        ScoreModel.load_from_checkpoint(f"{i}.ckpt", weights_only=True)


def test_another_chain_has_its_own_numbers(tmp_path):
    """Those of the class that the note advises, whatever is carried over from the class that was assumed."""
    path = diffusers_alone(tmp_path / "unet")
    (options,) = [options for note in interop.read(path, "diffusers").notes for options in alternatives(note)]
    assert run(["convert", "--from", "diffusers", str(path), "out.ckpt", *options]) == 0
    process = ScoreModel.load_from_checkpoint("out.ckpt", weights_only=True).score_function.process
    assert type(process) is CosineTable and torch.equal(process.entries, CosineTable().entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precond", "vp"], "precond=vp: only for files of edm; leave it out for score_sde"),
        (["--sde", "vp"], "--sde vp: this model was not trained on it, because the input of its network is log sigma"),
        (["--sde", "edm"], "argument --sde: invalid choice: 'edm'"),
    ],
    ids=str,
)
def test_options_of_other_files_are_refused(options, message, score_sde, capsys):
    assert run(["convert", "--from", "score_sde", score_sde, "out.ckpt", "--size=16", *options]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed


@pytest.mark.slow
def test_classes_are_sampled(tmp_path):
    torch.save(edm_state("ve_small_cond"), "network.pt")
    assert run(["convert", "--from", "edm", "network.pt", "edm.ckpt", *FEW]) == 0
    options = ["--num_samples=4", "--labels=[3]", "--output=drawn", "--data.path=absent"]
    assert run(["predict", "--ckpt_path=edm.ckpt", *options]) == 0
    assert run(["predict", "--ckpt_path=edm.ckpt", *options[:1], "--labels=[1]", "--output=others"]) == 0
    three, one = (np.load(f"{folder}/samples.npz")["images"] for folder in ("drawn", "others"))
    assert three.shape == (4, 24, 24, 1) and not np.array_equal(three, one)


def test_diffusers_there_and_back(tmp_path):
    """From a pipeline's folder to ours, from ours to a folder: diffusers loads and samples it, from the same network."""
    DDPMPipeline(unet(**SIMPLE), DDPMScheduler()).save_pretrained("theirs")
    assert run(["convert", "--from", "diffusers", "theirs", "out.ckpt"]) == 0
    assert run(["convert", "--from", "lightning_score", "out.ckpt", "again", "--to", "diffusers"]) == 0
    assert run(["convert", "--from", "diffusers", "theirs", "direct", "--to", "diffusers"]) == 0
    pipelines = [DiffusionPipeline.from_pretrained(folder) for folder in ("theirs", "again", "direct")]
    drawn = [
        p(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
        for p in pipelines
    ]
    assert drawn[0].shape == (2, 16, 16, 3)
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])


@pytest.mark.slow
def test_a_model_trained_here_becomes_a_pipeline(capsys):
    quick = ["--trainer.max_steps=2", "--samples.num_samples=1", "--evaluate.features=null", "--model.sampler.grid.steps=2"]
    assert run(["fit", "--config=ddpm", *quick]) == 0
    assert run(["convert", "--from=lightning_score", "runs/ddpm/latest/last.ckpt", "folder", "--to=diffusers"]) == 2
    assert "embedding FourierEmbedding: only PositionalEmbedding" in capsys.readouterr().err
    label = ["--model.parametrization=Noise", "--model.parametrization.noise_label=Index"]
    network = ["--model.network.embedding=PositionalEmbedding", "--model.network.embedding.width=32"]
    assert run(["fit", "--config=ddpm", *quick, *label, *network]) == 0
    assert run(["convert", "--from=lightning_score", "runs/ddpm/latest/last.ckpt", "folder", "--to=diffusers"]) == 0
    pipeline = DiffusionPipeline.from_pretrained("folder")
    model = ScoreModel.load_from_checkpoint("runs/ddpm/latest/last.ckpt", weights_only=True).eval()
    x, index = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        theirs = pipeline.unet(x, index).sample
        torch.testing.assert_close(model.score_function.noise(x, (index + 1) / 1000), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "ncsn", "checkpoint.pth", "out.ckpt"], "there is no such file"),
        (["--from", "other", "checkpoint.pth", "out.ckpt"], "invalid choice: 'other'"),
        (["checkpoint.pth", "out.ckpt"], "--from"),
        (["--from", "ncsn", "checkpoint.pth"], "OUT"),
        (["--from", "ncsn", "checkpoint.pth", "."], "already exists and is not overwritten"),
        (["--from", "lightning_score", "a.ckpt", "out.ckpt"], "add --to diffusers"),
        (["--from", "ncsn", "a.pth", "out.ckpt", "--size", "0"], "size=0: must be the positive"),
    ],
    ids=" ".join,
)
def test_errors_are_one_line(arguments, message, capsys):
    assert run(["convert", *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed


def test_nothing_is_left_of_a_conversion_that_fails(score_sde, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run(["convert", "--from", "score_sde", score_sde, "out", "--size=16", "--to", "diffusers"]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_the_kinds(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["convert", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in interop.KINDS) and "--size" in printed
