"""Process, parametrization, objective and sampler of published trainings, as parts of a config."""

from collections.abc import Mapping
from typing import Any

from lightning_score.interop.base import Settings, part


def adam(optimizer: Mapping[str, Any]) -> Settings:
    """Adam with the settings of a saved optimizer, as `{"optimizer": ...}`; empty if they are unknown."""
    group = (optimizer.get("param_groups") or [{}])[0]
    if "betas" not in group:
        return {}
    betas = [float(beta) for beta in group["betas"]]
    return {"optimizer": part("torch.optim.Adam", lr=float(group["lr"]), betas=betas, eps=float(group["eps"]))}


def matching(times: Settings, **settings: Any) -> Settings:
    """Denoising score matching with the weight sigma^2, at these times."""
    return part("DenoisingScoreMatching", **{"weighting": part("SigmaSquared"), "times": times, **settings})


def sampler(predictor: Settings, grid: Settings, **settings: Any) -> Settings:
    """A predictor on a grid of times."""
    return part("PredictorCorrector", predictor=predictor, grid=grid, **settings)


def corrected(grid: Settings, snr: float, steps: int = 1) -> Settings:
    """score_sde's predictor-corrector for VE: Langevin steps, whose norms are averaged over the batch, come first."""
    langevin = {"corrector": part("BatchLangevin", snr=snr), "corrector_steps": steps, "predict_first": False}
    return sampler(part("ReverseDiffusion"), grid, **langevin, denoise=part("LastMean"))


def ve(sigma_min: float, sigma_max: float, sampler: Settings) -> Settings:
    """score_sde's training on continuous VE, and a sampler."""
    return {
        "process": part("VE", sigma_min=sigma_min, sigma_max=sigma_max),
        "parametrization": part("ScoreOverSigma", noise_label=part("LogSigma")),
        "objective": matching(part("UniformTimes", t_min=1e-5)),
        "sampler": sampler,
    }


def linear_betas() -> Settings:
    """The chain of Ho et al. 2020 (2006.11239)."""
    return part("BetaTable", beta_min=1e-4, beta_max=0.02, steps=1000)


def chain(process: Settings, sampler: Settings, parametrization: str = "Noise") -> Settings:
    """Ho et al.'s training on a discrete chain, where the network gets the index of the noise level, and a sampler."""
    return {
        "process": process,
        "parametrization": part(parametrization, noise_label=part("Index")),
        "objective": matching(part("TableTimes"), mean=True),
        "sampler": sampler,
    }
