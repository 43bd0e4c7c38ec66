"""What score_sde's models were trained on, by their network and by the folders that the authors name after their configs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop import ncsnv2
from lightning_score.interop.base import Settings, part
from lightning_score.interop.refinenet import centered
from lightning_score.interop.training import chain, corrected, linear_betas, matching, sampler, ve

CENTERED = centered("values in [0, 1], as in all published models of VE")
UNCENTERED = (
    "values in [-1, 1], as in all published models of VP and sub-VP: "
    '--model.network.centered false --data.data_range "[0, 1]"'
)
NAMES = {
    "ve_discrete": "VE on discrete levels",
    "vp": "VP in continuous time",
    "subvp": "sub-VP in continuous time",
    "vp_discrete": "DDPM's chain of 1000 steps",
}
WHY = {
    "ve": "the input of its network is log sigma (Fourier features), as for continuous VE only",
    "ve_discrete": "its network is NCSN's or NCSNv2's, which score_sde trains on discrete VE only",
    "vp": "the input of its network is an index or a time",
}


class Training(NamedTuple):
    """How a model was trained; the file contains only the noise levels of VE.

    Attributes:
        settings: process, parametrization, objective and sampler.
        data_range: lowest and highest value of the data.
        notes: what was assumed.
    """

    settings: Settings
    data_range: tuple[float, float]
    notes: tuple[str, ...]


def training_of(sdes: Sequence[str], sigmas: Tensor, path: Path, sde: str | None) -> Training:
    """How a model was trained.

    Args:
        sdes: the SDEs on which such a network is trained.
        sigmas: the noise levels in the file, which it has for every SDE.
        path: the file, whose folders name the SDE of a network that is trained on several.
        sde: the SDE, if it is known.

    Raises:
        InputError: such a network is not trained on this SDE.
    """
    require(
        sde is None or sde in sdes,
        f"--sde {sde}: this model was not trained on it, because {WHY[sdes[0]]}; "
        f"give {' or '.join(f'--sde {other}' for other in sdes)}, or leave it out",
    )
    found, why = (sde, "") if sde else _by_folders(path) if len(sdes) > 1 else (sdes[0], "")
    if found in ("ve", "ve_discrete"):
        training = _ve(sigmas) if found == "ve" else ladder(sigmas)
    else:
        settings = _chain() if found == "vp_discrete" else _vp({"vp": "VP", "subvp": "SubVP"}[found])
        training = Training(settings, (-1.0, 1.0), (UNCENTERED,))
    if not why:
        return training
    others = " or ".join(f"--sde {other}" for other in sdes if other != found)
    return training._replace(notes=(f"the process is {NAMES[found]}, {why}: {others}", *training.notes))


def _by_folders(path: Path) -> tuple[str, str]:
    """The SDE of a network whose input is an index or a time, and why; continuous VP if no folder names it."""
    folders = path.absolute().parts[-4:-1]
    sde = next((folder for folder in reversed(folders) if folder in ("ve", "vp", "subvp")), None)
    if sde is None:
        return "vp", "since no folder is called vp, subvp or ve"
    if sde == "ve":
        return "ve_discrete", "since a folder is called ve"
    named = any("cifar10" in folder or "_" in folder for folder in folders)
    if sde == "vp" and named and not any("continuous" in folder for folder in folders):
        return "vp_discrete", "since a folder is called vp and none continuous"
    return sde, f"since a folder is called {sde}"


def _ve(sigmas: Tensor) -> Training:
    levels = ncsnv2.ladder(sigmas)["init_args"]
    snr = 0.16 if levels["sigma_max"] <= 100 else 0.075
    steps = corrected(part("ScoreSDESteps", steps=levels["levels"], t_min=1e-5), snr)
    note = f"the authors' signal-to-noise ratio of the corrector: --model.sampler.corrector.snr {snr:g}"
    return Training(ve(levels["sigma_min"], levels["sigma_max"], steps), (0.0, 1.0), (CENTERED, note))


def ladder(sigmas: Tensor, parametrization: str = "ScoreOverSigma") -> Training:
    """Discrete VE on the file's noise levels, which the network gets by their number."""
    settings = {
        "process": ncsnv2.ladder(sigmas),
        "parametrization": part(parametrization, noise_label=part("Index", descending=True)),
        "objective": matching(part("TableTimes")),
        "sampler": corrected(part("ProcessTable"), 0.16),
    }
    return Training(settings, (0.0, 1.0), (CENTERED,))


def _vp(process: str) -> Settings:
    grid = part("ScoreSDESteps", steps=1000, t_min=1e-3)
    return {
        "process": part(process, beta_min=0.1, beta_max=20.0),
        "parametrization": part("Noise", noise_label=part("Time", scale=999.0)),
        "objective": matching(part("UniformTimes", t_min=1e-5), mean=True),
        "sampler": sampler(part("EulerMaruyama"), grid, denoise=part("LastMean"), initial=part("Prior", std=1.0)),
    }


def _chain() -> Settings:
    return chain(linear_betas(), sampler(part("Ancestral"), part("ProcessTable"), denoise=part("LastMean")))
