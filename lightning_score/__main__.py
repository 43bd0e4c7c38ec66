"""`python -m lightning_score`: answers `--help` and `--version` without importing torch."""

import os
import sys

from lightning_score import stopping
from lightning_score.commands.help import first_screen

HELP = """\
usage: python -m lightning_score [-h] [--version] COMMAND [options]

Score-based generative models (NCSN, NCSNv2, DDPM, score SDE) as PyTorch Lightning experiments.

commands:
  fit        train a model; measure samples and FID:           fit --config configs/ncsn.yaml
  validate   held-out loss, samples and FID of a checkpoint:   validate --ckpt_path runs/ncsn/latest/last.ckpt
  test       loss, FID, KID, recall ... of a checkpoint:       test --ckpt_path runs/ncsn/latest/last.ckpt
  predict    draw samples from a checkpoint, as PNG and NPZ:   predict --ckpt_path runs/ncsn/latest/last.ckpt
  schedule   noise levels and step size from the data:         schedule --config configs/ncsn.yaml
  sweep      run the trials of a W&B sweep file, with no W&B: sweep sweeps/eps.yaml --jobs 2
  report     all runs on one page, for a browser:               report runs --serve
  gallery    pictures of all samplers on 2-D points:           gallery --ckpt_path runs/toy/latest/last.ckpt
  convert    another project's checkpoint to this one's:        convert --from score_sde checkpoint_26.pth converted.ckpt

`COMMAND --help` shows the options that people use. The shipped configs are ncsn, ddpm, vp_pc, conditional and toy, images
for a folder of images, and those in fashion_mnist, cifar10 and ncsnv2, such as fashion_mnist/edm16.
Options override configs. A class starts from its own defaults (--model.process VP); --model.process.beta_max 10 changes the
current class, and --model.process +VP keeps the current values of parameters that VP has too.
"""


def main() -> int:
    """Runs the command line and returns its exit code."""
    stopping.install()
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments == ["--version"]:
        from lightning_score import __version__

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


if __name__ == "__main__":
    sys.exit(main())
