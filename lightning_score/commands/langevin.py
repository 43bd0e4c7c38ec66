"""The command `langevin`: samples of a density of one's own by Markov chain Monte Carlo, and how far to trust them."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from lightning_score.commands.arguments import CONFIG, Arguments, Layer
from lightning_score.commands.chain_pictures import draw_chains, draw_cloud
from lightning_score.commands.chains import Chains
from lightning_score.commands.mistakes import make_paths_absolute
from lightning_score.commands.parser import Parser
from lightning_score.errors import require
from lightning_score.files import replace_text, replacing
from lightning_score.interop.base import part
from lightning_score.metrics.chains import FEWEST_DRAWS, LEAST_ESS, MOST_R_HAT, ChainSummary, summarize
from lightning_score.runs.folders import new_dated_folder, new_folder
from lightning_score.runs.records import finite, versions
from lightning_score.runs.yaml_files import load
from lightning_score.sampling import Sampler, Samples
from lightning_score.score.density import DensityScore

LEAST = {"num_samples": 1, "seed": 0, "burn_in": 0, "thin": 1}
OF_NOISE = {"denoise", "clip", "sigma", "t"}
"""Parameters of samplers for noise, which a density does not have."""
OF_DENSITY = ("density", "scale", "temperature", "initial_temperature", "levels")


def langevin(arguments: Arguments) -> None:
    """Samples a density; writes the samples, the chains and their pictures, and prints the diagnostics.

    Args:
        arguments: `langevin` and its options.

    Raises:
        InputError: an option or the density is wrong, or a chain diverges.
    """
    parser, given = _parser(), {option.name for option in arguments.options}
    needs = "langevin needs a density: --density Banana, or --density my_parts.MyClass for a class in my_parts.py"
    require(arguments.asks_for_help or bool(given & {"--density", CONFIG}), needs)
    config = parser.parse_args(_sampled(arguments))
    for name, least in LEAST.items():
        require(config[name] is None or config[name] >= least, f"--{name} {config[name]}: must be at least {least}")
    require(config.sampler is not None, "--sampler: give one, as --sampler LangevinDynamics")
    if config.steps is not None and "steps" in config.sampler.init_args:
        config.sampler.init_args.steps = config.steps
    make_paths_absolute(config, {})
    made = parser.instantiate_classes(config)
    score = DensityScore(**{name: made[name] for name in OF_DENSITY}).eval()
    chains = Chains(made.sampler, score, made.num_samples, made.burn_in, made.thin)
    folder = new_folder(Path(made.output)) if made.output else new_dated_folder(Path("runs") / "langevin")
    config.steps = None  # is now that of the sampler
    options = parser.dump(config)
    replace_text(folder / "config.yaml", options)
    start = time.perf_counter()
    samples = chains.draw(made.seed)
    seconds = time.perf_counter() - start
    _write_samples(folder / "samples.npz", chains, samples, made.seed)
    found = summarize(chains.kept, chains.names)
    warnings = _warnings(found, chains)
    report = {"options": load(options), **_numbers(chains), "nfe": samples.nfe, "seconds": seconds, "warnings": warnings}
    report |= {"coordinates": [row._asdict() for row in found], "versions": versions()}
    replace_text(folder / "langevin.json", json.dumps(finite(report), indent=1))
    pictures = _draw(folder, chains, samples, found)
    print("\n".join([f"{config.density.class_path}: {chains}", _table(found), *(f"warning: {line}" for line in warnings)]))
    print(f"{samples.nfe:g} evaluations per chain in {seconds:.1f} s: {', '.join(f'{folder}/{name}' for name in pictures)}")


def _sampled(arguments: Arguments) -> Arguments:
    """The options over Langevin dynamics as the sampler, unless another one is named."""
    named = any(option.name in ("--sampler", CONFIG) for option in arguments.options)
    return arguments.over(Layer({} if named else {"sampler": part("LangevinDynamics", step_size=0.01)}))


def _write_samples(file: Path, chains: Chains, samples: Samples, seed: int) -> None:
    """Writes `x`, the last states (chains, *shape), and what is kept of the chains, (chains, draws, coordinates)."""
    names, kept = chains.names, chains.kept
    count = sum(name.startswith("x") for name in names)
    arrays: dict[str, Any] = {"x": samples.x.numpy(), "chains": kept[:, :, :count], "steps": chains.kept_steps}
    arrays |= {"log_density": kept[:, :, count]} if count < len(names) else {}
    arrays |= {} if chains.acceptance is None else {"acceptance": chains.acceptance.numpy()}
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays, seed=seed, nfe=samples.nfe)


def _numbers(chains: Chains) -> dict[str, Any]:
    accepted = chains.acceptance
    shares = None if accepted is None else {"mean": float(accepted.mean()), "least": float(accepted.min())}
    sizes = {"num_samples": chains.num_samples, "steps": chains.steps, "burn_in": chains.burn_in}
    return sizes | {"thin": chains.thin, "draws": chains.draws, "acceptance": shares}


def _table(found: Sequence[ChainSummary]) -> str:
    """The diagnostics of the coordinates, one row each."""
    head = ("", "mean", "error", "std", "5 %", "50 %", "95 %", "ESS bulk", "ESS tail", "R-hat")
    rows = [[name, *(f"{v:.4g}" for v in (*numbers[:6],)), *(f"{v:.0f}" for v in numbers[6:8]), f"{numbers[8]:.3f}"]
            for name, *numbers in found]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in (head, *rows))


def _warnings(found: Sequence[ChainSummary], chains: Chains) -> list[str]:
    """What makes the samples doubtful."""
    if chains.draws < FEWEST_DRAWS:
        return [f"{chains.draws} draws per chain are too few for R-hat and effective sample sizes; take more steps"]
    apart = ", ".join(row.name for row in found if not row.r_hat <= MOST_R_HAT)  # also NaN
    few = ", ".join(row.name for row in found if not min(row.ess_bulk, row.ess_tail) >= LEAST_ESS)
    still = 0 if chains.acceptance is None else int((chains.acceptance == 0).sum())
    remedy = "take more steps or a larger step size, and for separate modes --sampler AnnealedLangevin"
    if chains.score.cools:
        remedy = "separate modes have the shares of the temperature at which chains last crossed between them"
    warnings = {
        f"R-hat of {apart} is not below {MOST_R_HAT}: single chains have not explored the whole law; {remedy}": apart,
        f"the effective sample size of {few} is below {LEAST_ESS}: its numbers are rough; take more steps or chains": few,
        f"{still} chains never moved after burn-in: all their steps were rejected; take a smaller step size": still,
    }
    return [warning for warning, holds in warnings.items() if holds]


def _draw(folder: Path, chains: Chains, samples: Samples, found: Sequence[ChainSummary]) -> list[str]:
    """Draws the pictures, and returns the names of all files."""
    figures = {"chains.png": draw_chains(chains, found)} if chains.draws >= FEWEST_DRAWS else {}
    if tuple(chains.score.shape) == (2,):
        figures["cloud.png"] = draw_cloud(chains, samples.x)
    for name, figure in figures.items():
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, dpi=90, format="png")
    return ["samples.npz", "langevin.json", *figures]


def _parser() -> Parser:
    purpose = "Samples a density of your own, a class with log_density(x) or score(x), by Markov chain Monte Carlo."
    parser = Parser(prog="python -m lightning_score langevin", description=purpose)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A file of these options, as config.yaml of a run.")
    parser.add_class_arguments(DensityScore, fail_untyped=False, instantiate=False)
    sampler = "LangevinDynamics, MarkovChain (with --sampler.corrector MALA, HMC, ...) or AnnealedLangevin."
    parser.add_subclass_arguments(Sampler, "sampler", skip=OF_NOISE, help=sampler)
    steps = "Short for --sampler.steps: of each chain, or for AnnealedLangevin of each temperature."
    parser.add_argument("--steps", type=int | None, default=None, help=steps)
    parser.add_argument("--num_samples", type=int, default=1024, help="Number of chains.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the chains; chain k is the same in any run.")
    parser.add_argument("--burn_in", type=int | None, default=None, help="Steps to leave out first; half by default.")
    parser.add_argument("--thin", type=int | None, default=None, help="Steps from one kept draw to the next.")
    parser.add_argument("--output", type=str, help="A new folder; by default a new one in runs/langevin.")
    return parser
