"""The study and the search space of branches.yaml: a solver, the number of its steps, and only the settings that it has."""

from typing import Any

import optuna

FIXED = {
    "model.sampler": "PredictorCorrector",
    "model.sampler.corrector": None,
    "model.sampler.grid": "Quadratic",
    "model.sampler.grid.t_min": 0.024,
    "model.sampler.denoise": "Tweedie",
    "evaluate.num_samples": 898,
}


def study(sweep: Any) -> optuna.Study:
    """The sampler has a seed, so that the trials are the same ones everywhere."""
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=12)
    return optuna.create_study(sampler=sampler, direction=sweep.config["metric"]["goal"])


def space(trial: optuna.Trial) -> dict[str, Any]:
    """Settings by their names on the command line."""
    solver = trial.suggest_categorical("solver", ["IPNDM", "UniPC", "SASolver"])
    settings = {**FIXED, "model.sampler.predictor": solver, "model.sampler.grid.steps": trial.suggest_int("steps", 4, 14)}
    if solver == "SASolver":
        settings["model.sampler.predictor.tau_min"] = trial.suggest_float("tau_min", 0.05, 0.5, log=True)
        settings["model.sampler.predictor.tau_max"] = trial.suggest_float("tau_max", 1.0, 10.0, log=True)
        return settings
    highest = 4 if solver == "IPNDM" else 3
    settings["model.sampler.predictor.order"] = trial.suggest_int(f"order of {solver}", 1, highest)
    return settings
