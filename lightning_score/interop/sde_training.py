"""What score_sde's models were trained on, by their network and by the folders that the authors name after their configs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lightning_score.errors import require
from lightning_score.interop import ncsnv2
from lightning_score.interop.base import Settings, part
from lightning_score.interop.refinenet import centered

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
    "ve": "its network is told log sigma (Fourier features), as only continuous VE does",
    "ve_discrete": "its network is NCSN's or NCSNv2's, which score_sde trains on discrete VE only",
    "vp": "its network is told an index or a time",
}


class Training(NamedTuple):
    """What a model was trained on, of which the file holds nothing but the noise levels of VE.

    `settings` are process, parametrization, objective and sampler; `notes` say what was assumed.
    """

    settings: Settings
    data_range: tuple[float, float]
    notes: tuple[str, ...]


def training_of(sdes: Sequence[str], sigmas: Tensor, path: Path, sde: str | None) -> Training:
    """What a model was trained on.

    Args:
        sdes: the SDEs on which such a network is trained.
        sigmas: the noise levels in the file, which it has for every SDE.
        path: the file, whose folders say the SDE where the network has several.
        sde: the SDE, if it is known.

    Raises:
        InputError: such a network is not trained on this SDE.
    """
    require(
        sde is None or sde in sdes,
        f"--sde {sde}: this model is not of it, because {WHY[sdes[0]]}; "
        f"give {' or '.join(f'--sde {other}' for other in sdes)}, or leave it out",
    )
    found, why = (sde, None) if sde else _by_folders(path) if len(sdes) > 1 else (sdes[0], None)
    training = {"ve": _ve, "ve_discrete": ladder, "vp": _vp, "subvp": _subvp, "vp_discrete": _chain}[found](sigmas)
    if why is None:
        return training
    others = " or ".join(f"--sde {other}" for other in sdes if other != found)
    return training._replace(notes=(f"the process is {NAMES[found]}, {why}: {others}", *training.notes))


def _by_folders(path: Path) -> tuple[str, str]:
    """The SDE of a network that is told an index or a time, and why; the continuous VP if no folder says it."""
    folders = path.absolute().parts[-4:-1]
    sde = next((folder for folder in reversed(folders) if folder in ("ve", "vp", "subvp")), None)
    if sde is None:
        return "vp", "since no folder is called vp, subvp or ve"
    named = any("cifar10" in folder or "_" in folder for folder in folders)
    continuous = not named or any("continuous" in folder for folder in folders)
    if sde == "ve":
        return "ve_discrete", "since a folder is called ve"
    if sde == "vp" and not continuous:
        return "vp_discrete", "since a folder is called vp and none continuous"
    return sde, f"since a folder is called {sde}"


def _matching(times: Settings, mean: bool) -> Settings:
    return part("DenoisingScoreMatching", weighting=part("SigmaSquared"), times=times, mean=mean)


def _corrected(grid: Settings, snr: float) -> Settings:
    """The authors' predictor-corrector for VE: Langevin steps, whose norms are averaged over the batch, come first."""
    return part(
        "PredictorCorrector",
        predictor=part("ReverseDiffusion"),
        corrector=part("BatchLangevin", snr=snr),
        corrector_steps=1,
        predict_first=False,
        grid=grid,
        denoise=part("LastMean"),
    )


def _ve(sigmas: Tensor) -> Training:
    levels = ncsnv2.ladder(sigmas)["init_args"]
    snr = 0.16 if levels["sigma_max"] <= 100 else 0.075
    settings = {
        "process": part("VE", sigma_min=levels["sigma_min"], sigma_max=levels["sigma_max"]),
        "parametrization": part("ScoreOverSigma", noise_label=part("LogSigma")),
        "objective": _matching(part("UniformTimes", t_min=1e-5), mean=False),
        "sampler": _corrected(part("Uniform", steps=levels["levels"], t_min=1e-5), snr),
    }
    notes = (
        CENTERED,
        f"the authors' signal-to-noise ratio of the corrector: --model.sampler.corrector.snr {snr:g}",
    )
    return Training(settings, (0.0, 1.0), notes)


def ladder(sigmas: Tensor, parametrization: str = "ScoreOverSigma") -> Training:
    """Discrete VE on the file's noise levels, told by their number."""
    settings = {
        "process": ncsnv2.ladder(sigmas),
        "parametrization": part(parametrization, noise_label=part("Index", descending=True)),
        "objective": _matching(part("TableTimes"), mean=False),
        "sampler": _corrected(part("ProcessTable"), 0.16),
    }
    return Training(settings, (0.0, 1.0), (CENTERED,))


def _vp(sigmas: Tensor, process: str = "VP") -> Training:
    settings = {
        "process": part(process, beta_min=0.1, beta_max=20.0),
        "parametrization": part("Noise", noise_label=part("Time", scale=999.0)),
        "objective": _matching(part("UniformTimes", t_min=1e-5), mean=True),
        "sampler": part(
            "PredictorCorrector",
            predictor=part("EulerMaruyama"),
            grid=part("Uniform", steps=1000, t_min=1e-3),
            denoise=part("LastMean"),
        ),
    }
    return Training(settings, (-1.0, 1.0), (UNCENTERED,))


def _subvp(sigmas: Tensor) -> Training:
    return _vp(sigmas, "SubVP")


def _chain(sigmas: Tensor) -> Training:
    settings = {
        "process": part("BetaTable", beta_min=1e-4, beta_max=0.02, steps=1000),
        "parametrization": part("Noise", noise_label=part("Index")),
        "objective": _matching(part("TableTimes"), mean=True),
        "sampler": part(
            "PredictorCorrector", predictor=part("Ancestral"), grid=part("ProcessTable"), denoise=part("LastMean")
        ),
    }
    return Training(settings, (-1.0, 1.0), (UNCENTERED,))
