"""The names of the metrics that a command logs."""

import lightning_score.lean_imports  # noqa: F401

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback

from lightning_score.callbacks import (
    BitsPerDim,
    Ensembles,
    Evaluate,
    GradientNoiseScale,
    LangevinHealth,
    LossFloor,
    Nats,
    Posterior,
    ScorePlot,
)
from lightning_score.callbacks.pictures import pictured
from lightning_score.data import ScoreData
from lightning_score.metrics.manifold import Manifold
from lightning_score.metrics.totals import KEPT, KINDS, NEIGHBORS
from lightning_score.runs.records import metric_name

LIKELIHOOD = ("", "_error", "_n", "_spread")
"""What follows the names of likelihoods."""
SKILL = "crps crps_skill rank_deviation residual spread_skill"


def _scores(prefix: str, names: str) -> list[str]:
    """The names of scores of samples given a condition: each with its error, and a deviation also with floor and limit."""
    suffixes = {
        name: ("", "_error", *(("_floor", "_limit") if name.endswith("_deviation") else ())) for name in names.split()
    }
    return [f"{prefix}/{name}{suffix}" for name, each in suffixes.items() for suffix in each]


OF_CALLBACKS: dict[type[Callback], tuple[str, ...]] = {
    BitsPerDim: tuple(f"test/bits_per_dim{suffix}" for suffix in LIKELIHOOD),
    Nats: tuple(f"test/{name}{suffix}" for name in ("nats", "nats_per_dim") for suffix in LIKELIHOOD),
    Ensembles: (*_scores("test", SKILL), *_scores("val", SKILL)),
    Posterior: (
        *_scores("test", f"{SKILL} interval_50 interval_90 likelihood_rank_deviation posterior_distance psnr rmse ssim"),
        *_scores("test", "residual_over_noise tarp_deviation z_score"),
        *("test/posterior_distance_floor", "test/nfe", "test/sampling_seconds"),
    ),
    GradientNoiseScale: ("train/gradient_noise_scale",),
    LangevinHealth: ("val/langevin_variance_ratio", "val/langevin_snr"),
    LossFloor: (
        "val/fitted_times_mean",
        "val/fitted_times_std",
        *(f"val/excess_loss_{split}" for split in ("train", "held_out")),
        *(f"val/{name}_{split}/*" for name in ("loss", "excess_loss") for split in ("train", "held_out")),
    ),
    ScorePlot: ("val/score_error",),
}
"""Metrics of the callbacks of this package except `Evaluate`; those not listed log nothing. `*` is a noise level."""
TO_LOGGERS = ("LearningRateMonitor", "DeviceStatsMonitor")
"""Lightning's callbacks whose metric names are not known in advance."""


def logged_metrics(
    command: str, evaluate: Evaluate, callbacks: Sequence[Callback], data: ScoreData
) -> tuple[set[str], list[Callback]]:
    """The names of all metrics that a command logs, and the callbacks whose metrics are unknown.

    Args:
        command: fit, validate or test.
        evaluate: the evaluation of samples.
        callbacks: the trainer's callbacks.
        data: the data.
    """
    prefix = "test/" if command == "test" else "val/"
    names = {f"{prefix}loss", *({"train/loss", "train/lr"} if command == "fit" else ())}
    names |= _of_evaluate(prefix, evaluate, data)
    unknown = []
    for callback in callbacks:
        kind = type(callback)
        shipped = kind.__module__.startswith(("lightning_score.", "lightning.", "pytorch_lightning."))
        if isinstance(callback, Ensembles) and prefix == "val/" and not callback.in_fit:
            continue
        prefixes = (prefix, "train/") if command == "fit" else (prefix,)
        names |= {name for name in OF_CALLBACKS.get(kind, ()) if name.startswith(prefixes)}
        if not shipped or kind.__name__ in TO_LOGGERS:
            unknown.append(callback)
    return names, unknown


def _of_evaluate(prefix: str, evaluate: Evaluate, data: ScoreData) -> set[str]:
    test = prefix == "test/"
    several, full = test and evaluate.repeats > 1, test or evaluate.all_metrics
    kinds: dict[str, list[str]] = {}  # and what else is logged of each
    for distance in evaluate.chosen(data, test):
        kinds[metric_name(distance.name, "", evaluate.num_samples)] = ["", "_error", "_floor", "_n"]
    for features in evaluate.features:
        comparable = (evaluate.file is None or evaluate.file.images is not None) and evaluate.num_samples > NEIGHBORS
        measured = {"fid": True, "fid_infinity": full and evaluate.fid_infinity, "is": full and features.num_logits > 0}
        measured |= {"cmmd": "cmmd" in features.measured and comparable}
        measured["cmmd_infinity"] = measured["cmmd"] and measured["fid_infinity"]
        quick = full or features.num_features <= 256
        for kind in KINDS:
            if measured.get(kind, full and comparable):
                has_error = several or (quick if kind == "fid" else kind not in Manifold._fields)
                parts = ["", *(["_error"] if has_error else []), *(["_floor", "_n"] if kind in ("fid", "cmmd") else [])]
                n = min(evaluate.num_samples, KEPT) if kind.startswith("cmmd") else evaluate.num_samples
                kinds[metric_name(kind, features.name, n)] = parts
    if not kinds:
        return set()
    endings = ["", *(["_noisy"] if evaluate.before_denoising else [])]
    endings += [f"{ending}_raw_weights" for ending in endings] if evaluate.raw_weights else []
    names = {f"{prefix}{name}{ending}{part}" for name, parts in kinds.items() for ending in endings for part in parts}
    copies = {"test/copied", "test/copied_held_out", "test/neighbor_distance_ratio"}
    names |= {f"{prefix}nfe", f"{prefix}sampling_seconds"}
    names |= {"test/memory_gb", *(["test/gpu_memory_gb"] if torch.cuda.is_available() else [])} if test else set()
    return names | (copies if test and pictured(data) and evaluate.neighbors else set())
