"""usage: python -m lightning_score [-h] [--version] COMMAND [options]

Score-based generative models (NCSN, NCSNv2, DDPM, score SDE) as PyTorch Lightning experiments.

commands:
  fit        train a model; measure samples and FID:           fit --config configs/ncsn.yaml
  validate   held-out loss, samples and FID of a checkpoint:   validate --ckpt_path runs/ncsn/latest/last.ckpt
  test       loss, FID, KID, recall ... of a checkpoint:       test --ckpt_path runs/ncsn/latest/last.ckpt
  evaluate   the same measures of samples that others drew:    evaluate samples.npz --data Digits
  predict    draw samples from a checkpoint, as PNG and NPZ:   predict --ckpt_path runs/ncsn/latest/last.ckpt
  schedule   noise levels and step size from the data:         schedule --config configs/ncsn.yaml
  langevin   samples of a density of your own, by MCMC:        langevin --density Banana --sampler.step_size 1e-2
  grid       times of few steps, learned from a checkpoint:    grid --ckpt_path runs/conditional/latest/last.ckpt
  tune       Langevin steps for a budget of evaluations:       tune --ckpt_path runs/ncsn/latest/last.ckpt --evaluations 100
  ema        averages of the weights of other lengths:         ema --ckpt_path runs/ddpm/latest --lengths 0.05 0.1
  sweep      run the trials of a W&B sweep file without W&B:   sweep sweeps/eps.yaml --jobs 2
  benchmark  images per second, memory and FID of samplers:    benchmark --ckpt_path digits/vp_pc
  report     all runs on one page, for a browser:              report runs --serve
  gallery    pictures of all samplers on 2-D points:           gallery --ckpt_path runs/toy/latest/last.ckpt
  convert    another project's checkpoint to this one's:       convert --from score_sde checkpoint_26.pth converted.ckpt
  push       a model to the Hugging Face Hub, with a card:     push runs/ncsn/latest user/digits --license mit
  pull       a model of the Hub to a folder:                   pull user/digits

`COMMAND --help` shows the options that people use. The shipped configs are ncsn, ddpm, vp_pc, flow, conditional, ect, ddo
and toy, images and arrays for data of your own, and those in science, fashion_mnist, cifar10 and ncsnv2, as
fashion_mnist/edm16. Options override configs. The trained models in the package, names for --ckpt_path, and for --config to
train one again, are digits/ncsn, digits/ddpm, digits/vp_pc, digits/conditional and fashion_mnist/edm16. A class starts from
its own defaults (--model.process VP); --model.process.beta_max 10 changes the current class, and --model.process +VP keeps
the current values of parameters that VP has too.
"""

import os
import sys

from lightning_score import __version__, stopping

_SCREEN = """\
usage: python -m lightning_score {command} {required} [options]

{summary}

{options}

more:
  {command} --help all
      every option: {all}
  {command} {required} {more}
"""

_MORE = """\
--model.sampler.help AnnealedLangevin
      the options of one part; in the same way --model.process.help VP, --model.network.help UNet, --data.help Digits
  {command} {required} --print_config
      the whole configuration, with every default"""

_MORE_OF_SAMPLES = """\
--data.help Digits
      the options of one part"""

_SAMPLER = """\
  --model.sampler AnnealedLangevin         or PredictorCorrector, ConsistentAnnealedLangevin, LangevinDynamics,
                                           MarkovChain, ProbabilityFlow, TwistedSMC;
                                           its parameters as --model.sampler.steps 50"""

_CHECKPOINT = """\
  --ckpt_path runs/ncsn/latest/last.ckpt   the checkpoint, which holds model, data and sampler, or a trained model:
                                           digits/ncsn, /ddpm, /vp_pc or /conditional, or fashion_mnist/edm16
  --ema_length 0.07                        another average of the weights, of a run with --ema.lengths
  --output FOLDER                          a new folder for the results; next to the checkpoint by default"""

_FEATURES = """\
  --evaluate.features InceptionFeatures    or SpatialFeatures, DINOv2Features, CLIPFeatures, DigitFeatures,
                                           FashionFeatures, ModuleFeatures, RawFeatures; several as "[A, B]"
  --evaluate.distances "[Histogram]"       or SlicedWasserstein, EnergyDistance, PowerSpectrum; without features"""

_EVALUATION = f"""\
  --evaluate.num_samples 50000             samples for FID and the other metrics
{_FEATURES}
  --evaluate.repeats 3                     mean over so many sampling seeds"""

_DEVICES = """\
  --trainer.devices 2                      number of GPUs, or of processes with --trainer.accelerator cpu; several need
                                           --trainer.strategy ddp"""

_FIT = f"""\
common options:
  --config ncsn                            a shipped config or a YAML file; of several the later ones win
  --name mine                              name of the run; its folder is RUNS/NAME/date_time
  --seed_everything 0                      seed of weights, data order and noise
  --trainer.max_steps 2400                 optimizer steps
  --trainer.val_check_interval 1200        steps between validations, which measure samples
{_DEVICES}
  --trainer.precision bf16-mixed           or 32-true, 16-mixed, 64-true
  --model.network UNet                     or NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest, DDPMpp, NCSNpp, MLP;
                                           its parameters as --model.network.channels 64
  --model.process VP                       or SubVP, VE, Cosine, Linear, BetaTable, ScaledLinearBetas, CosineTable,
                                           BetaChain, SigmaTable
{_SAMPLER}
  --model.optimizer.lr 1.0e-3              learning rate
  --data Digits                            or FashionMNIST, MNIST, CIFAR10, GaussianMixture, ImageFolder, ImageStream,
                                           Arrays, ArrayStream; its parameters as --data.batch_size 64
  --model.conditional true                 gives the network the labels or other conditions of the data
  --ema.decay 0.999                        average of the weights; with --ema.lengths "[0.05, 0.1]" any other afterwards
{_EVALUATION}
  --trainer.logger TensorBoardLogger       W&B where it can be used, by default; metrics.csv is always written
  --ckpt_path last                         resumes the newest run of the config; a run folder or a checkpoint also serve"""

_PREDICT = f"""\
common options:
{_CHECKPOINT}
  --num_samples 64                         number of samples
  --seed 0                                 sample k of a seed is the same in every run
  --labels "[3]"                           class labels, in turn; all classes by default
  --condition "[0.3, 1.5]"                 other conditions, in turn: numbers, or an NPY or NPZ file
  --observation y.npz                      observations, whose posteriors are sampled by a guidance; PNG, NPY or NPZ
  --samples_per_observation 16             samples of each
  --batch_size 1024                        samples drawn at once
  --progressive 8                          draws so many samples from noise to data, too
{_SAMPLER}
  --model.guidance ClassifierFree          or Autoguidance, ClassifierGuidance, MomentMatching, DPS, PseudoInverse,
                                           NoisyLikelihood, Observed, Inpainting, Colorization, SuperResolution,
                                           Composed
{_DEVICES}"""

_MEASURE = f"""\
common options:
{_CHECKPOINT}
{_EVALUATION}
{_SAMPLER}
{_DEVICES}"""

_TEST = f"""\
{_MEASURE}
  --posterior true                         calibration, coverage and errors of samples given observations, not FID;
                                           needs --model.guidance; its numbers as --posterior.observations 64"""

_OF_OTHERS = f"""\
common options:
  --data Digits                            or FashionMNIST, MNIST, CIFAR10, GaussianMixture, ImageFolder, ImageStream,
                                           Arrays, ArrayStream; the data that samples are compared with
  --config ncsn                            takes data and features from a config, or from a run's config.yaml
{_FEATURES}
  --evaluate.reference adm.npz             a reference batch of ADM's evaluator, or statistics, in place of the data
  --num_samples 50000                      the first samples; all by default
  --output FOLDER                          a new folder for the results; in runs/NAME/evaluate by default"""

_TUNE = f"""\
common options:
  --ckpt_path runs/ncsn/latest/last.ckpt   the checkpoint; it holds model, data and sampler, and options override them
  --evaluations 100                        network evaluations per sample; as many as now by default
  --output tuned.yaml                      a file for the sampler, as a config for predict and test
  --plot tuned.png                         a file for a picture of the derivation (png, pdf or svg)
  --num_samples 256                        samples with which the result is measured
{_SAMPLER}"""

_NEEDS_CHECKPOINT = "--ckpt_path CHECKPOINT"
_SCREENS = {
    "fit": ("--config CONFIG", "Trains a model, and measures its samples while it trains.", _FIT),
    "validate": (_NEEDS_CHECKPOINT, "Measures a checkpoint as fit does: loss, samples, FID or distances.", _MEASURE),
    "test": (
        _NEEDS_CHECKPOINT,
        "Measures a checkpoint in full: loss, FID, KID, precision, recall, or distances, and copies.",
        _TEST,
    ),
    "evaluate": (
        "SAMPLES --data DATA",
        "Measures images in a folder or zip, or an NPZ of images, arr_0 or x, as test measures those of a model.",
        _OF_OTHERS,
    ),
    "tune": (_NEEDS_CHECKPOINT, "Derives the Langevin steps of a sampler from a trained model, for a budget.", _TUNE),
    "predict": (_NEEDS_CHECKPOINT, "Draws samples from a checkpoint, as PNG and NPZ.", _PREDICT),
}


def main() -> int:
    """Runs the command line and returns its exit code."""
    stopping.install()
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(__doc__, end="")
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(f"lightning_score {__version__}")
        return 0
    if screen := first_screen(arguments):
        print(screen, end="")
        return 0
    if arguments[1:] == ["--help", "all"]:
        arguments = [arguments[0], "--help"]
    # OpenMP threads spin briefly, then sleep: full speed on an idle machine, and no collapse on a busy one, where spinning
    # without end made a step 10 to 50 times as slow.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from lightning_score.cli import run

    with stopping.raising():
        return run(arguments)


def first_screen(arguments: list[str]) -> str | None:
    """The help of `COMMAND --help`; None for other arguments, and for commands whose whole help is short."""
    if len(arguments) != 2 or arguments[0] not in _SCREENS or arguments[1] not in ("-h", "--help"):
        return None
    required, summary, options = _SCREENS[arguments[0]]
    names = {"command": arguments[0], "required": required}
    of_samples = arguments[0] == "evaluate"
    more, every = (_MORE_OF_SAMPLES, "data, measures") if of_samples else (_MORE, "trainer, model, data, callbacks")
    return _SCREEN.format(**names, summary=summary, options=options, more=more.format(**names), all=every)


if __name__ == "__main__":
    sys.exit(main())
