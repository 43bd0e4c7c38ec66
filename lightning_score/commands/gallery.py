"""The command `gallery`: the samples of all samplers for a 2-D Gaussian mixture, and why NCSN has many noise levels."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_score import sampling
from lightning_score.callbacks.score_plot import Marginal, draw_density, extent
from lightning_score.commands.arguments import Arguments
from lightning_score.commands.configs import load_checkpoint, trusted_modules
from lightning_score.commands.parser import Parser
from lightning_score.commands.schedule import data_from
from lightning_score.data import GaussianMixture, Mixture
from lightning_score.errors import InputError, require
from lightning_score.files import replacing
from lightning_score.memory import require_room
from lightning_score.process import NoiseProcess, SigmaTable
from lightning_score.runs.folders import new_dated_folder, new_folder
from lightning_score.runs.pretrained import results_of
from lightning_score.sampling import NoiseStream, PredictorCorrector, Sampler
from lightning_score.score.empirical import EmpiricalScore
from lightning_score.training.model import ScoreModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = 60  # of the grid of every sampler
SNAPSHOTS = 5
SMALLEST = 0.05  # last noise level of every sampler, for data of about unit scale


def gallery(arguments: Arguments) -> None:
    """Draws `samplers.png` and `levels.png` for a checkpoint of a 2-D Gaussian mixture.

    Args:
        arguments: `gallery` and its options.

    Raises:
        InputError: the data of the checkpoint are not a 2-D Gaussian mixture.
    """
    options = _parser().parse_args(arguments)
    require(options.num_samples >= 1, f"--num_samples {options.num_samples}: must be at least 1")
    trusted = trusted_modules(arguments)
    require_room(1000 * options.num_samples, f"--num_samples {options.num_samples}", "draw fewer")
    checkpoint = load_checkpoint(options.ckpt_path, trusted)
    data = data_from(checkpoint["config"].get("data"))
    if not isinstance(data, GaussianMixture) or data.shape != (2,):
        takes = f"gallery draws 2-D data of a known density (GaussianMixture), not {type(data).__name__}"
        raise InputError(f"--ckpt_path {options.ckpt_path}: {takes}; train one by fit --config toy")
    model = ScoreModel.load_from_checkpoint(options.ckpt_path, map_location="cpu", trust=list(trusted)).eval()
    own = results_of(options.ckpt_path) / "gallery"
    folder = new_folder(Path(options.output)) if options.output else new_dated_folder(own)
    samples = draw_samplers(model, data.mixture, options.num_samples, options.seed)
    for name, figure in (("samplers", samples), ("levels", draw_levels(options.num_samples, options.seed))):
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=80)
    print(f"drawn: {folder}/samplers.png, {folder}/levels.png")


def samplers(process: NoiseProcess) -> dict[str, Sampler]:
    """Every predictor alone, every corrector after reverse diffusion, and every sampler without a predictor, by name.

    All run on a geometric grid of 60 steps; correctors that need more than two dimensions, and `Consistency`,
    for tuned models, are left out.

    Args:
        process: the noise process of the model.
    """
    grid = sampling.Geometric(STEPS, float(process.time_of(torch.tensor(SMALLEST, dtype=torch.float64))))
    found: dict[str, Sampler] = {}
    for kind in _concrete(sampling.Predictor):
        if kind.evaluations and kind is not sampling.Consistency and not kind.needs_observation:
            steps = sampling.Geometric(SNAPSHOTS - 1, grid.t_min) if kind.adaptive else grid
            found[kind.__name__] = PredictorCorrector(kind(), grid=steps, denoise=sampling.KeepNoise())
    for kind in _concrete(sampling.Corrector):
        if kind.min_dimension <= 2 and kind not in (sampling.AnnealedLangevinStep, sampling.FixedLangevin):
            name = f"ReverseDiffusion + {kind.__name__}"
            found[name] = PredictorCorrector(corrector=kind(), grid=grid, denoise=sampling.KeepNoise())
    found["AnnealedLangevin, 5 steps per level"] = sampling.AnnealedLangevin("auto", 5, grid)
    found["ConsistentAnnealedLangevin"] = sampling.ConsistentAnnealedLangevin(0.5 * SMALLEST**2, grid, sampling.KeepNoise())
    found["LangevinDynamics, one level"] = sampling.LangevinDynamics(0.1 * SMALLEST**2, 5 * STEPS, sigma=SMALLEST)
    for sampler in found.values():
        sampler.check(process)
    return found


def _concrete(base: type) -> list[Any]:
    classes = [c for _, c in inspect.getmembers(sampling, inspect.isclass) if issubclass(c, base)]
    return [c for c in classes if not inspect.isabstract(c)]


@torch.inference_mode()
def draw_samplers(model: ScoreModel, mixture: Mixture, n: int = 500, seed: int = 0) -> "Figure":
    """Every sampler's samples at five times from noise to data, over the density.

    Args:
        model: a model of the mixture.
        mixture: the distribution of the data.
        n: samples of each sampler.
        seed: of the samples.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure  # takes a second to import

    process = model.score_function.process
    chosen = samplers(process)
    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(14, 1.7 * rows), layout="constrained")
    panels: Any = figure.subfigures(rows, 2)
    for panel, (name, sampler) in zip(panels.flat, chosen.items(), strict=False):
        result = sampler(model.score_function, NoiseStream(seed, range(n), (2,)), trajectory=True)
        stages = sampler.moves(process)
        times, clouds = [torch.ones(()), *(stage.end for stage in stages)], result.trajectory or []
        shown = torch.linspace(0, len(stages), SNAPSHOTS).round().long().tolist()
        panel.suptitle(f"{name}, NFE {result.nfe:g}", fontsize=9)
        for axes, i in zip(panel.subplots(1, SNAPSHOTS), shown, strict=True):
            _draw_cloud(axes, mixture, process, times[i], clouds[i])
    return figure


def _draw_cloud(axes: "Axes", mixture: Mixture, process: NoiseProcess, t: Tensor, x: Tensor) -> None:
    """The samples x/alpha at time t, at most the last one with signal, over their density."""
    t = process.with_signal(t)
    marginal = Marginal(mixture, t, 1.0, float(process.noise_level(t)))
    draw_density(axes, marginal, extent(mixture) + 2 * marginal.sigma)
    first, second = (x / process.alpha(t)).T
    axes.scatter(first, second, s=3, color="tab:red", alpha=0.6, linewidths=0)
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.text(0.03, 0.03, rf"$\sigma$ = {marginal.sigma:.2g}", transform=axes.transAxes, fontsize=8)


def two_segments() -> Tensor:
    """60 points on a line, in two segments with a fifth and four fifths of them, (60, 2)."""
    along = torch.cat([torch.linspace(-1.5, -0.9, 12), torch.linspace(0.9, 1.5, 48)])
    return torch.stack([along, 0.4 * along], 1)


def one_level_and_many(n: int, seed: int = 0) -> dict[str, tuple[Tensor, float]]:
    """Samples of `two_segments` by Langevin dynamics at one small noise level and at many, with the exact score and the same
    number of evaluations: by name, the samples (n, 2) and their share in the larger segment.

    With one level every sample stays in the segment nearer to its start, for the score does not lead from one to the other;
    hence the many levels of NCSN (Song and Ermon 2019, 1907.05600, section 3).

    Args:
        n: number of samples.
        seed: of the samples.
    """
    sigma, levels, steps = 0.05, 20, 50
    process = SigmaTable(sigma, 5.0, levels)
    score = EmpiricalScore(process, two_segments().double())
    start = sampling.UniformNoise(-2.0, 2.0)
    one = sampling.LangevinDynamics(0.2 * sigma**2, levels * steps, sigma=sigma, initial=start)
    many = sampling.AnnealedLangevin("auto", steps, initial=start)
    drawn = {}
    for name, sampler in ((rf"one level, $\sigma$ = {sigma:g}", one), (rf"{levels} levels, 5 to {sigma:g}", many)):
        x = sampler(score, NoiseStream(seed, range(n), (2,), dtype=torch.float64)).x
        drawn[name] = x, float((x[:, 0] > 0).double().mean())
    return drawn


def draw_levels(n: int = 500, seed: int = 0) -> "Figure":
    """Why NCSN has many noise levels: `one_level_and_many` next to the data, as a matplotlib figure.

    Args:
        n: number of samples.
        seed: of the samples.
    """
    from matplotlib.figure import Figure

    clouds = {"data": (two_segments(), 0.8), **one_level_and_many(n, seed)}
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, (name, (x, share)) in zip(figure.subplots(1, 3, sharex=True, sharey=True), clouds.items(), strict=True):
        axes.scatter(*x.T, s=5, alpha=0.5, linewidths=0)
        axes.set(aspect="equal", xlim=(-2, 2), ylim=(-2, 2), xlabel="$x_1$", ylabel="$x_2$")
        axes.set_title(f"{name}: {share:.0%} on the right")
    return figure


def _parser() -> Parser:
    purpose = "Draws the samples of every sampler for a model of 2-D points, and why NCSN has many noise levels."
    parser = Parser(prog="python -m lightning_score gallery", description=purpose)
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of a GaussianMixture, as fit --config toy.")
    parser.add_argument("--trust", type=str, help="Module of which the checkpoint may name classes, as my_parts.")
    parser.add_argument("--output", type=str, help="Folder for the pictures; a new one next to the checkpoint by default.")
    parser.add_argument("--num_samples", type=int, default=500, help="Samples of each sampler.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the samples.")
    return parser
