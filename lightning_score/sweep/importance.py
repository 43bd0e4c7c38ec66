"""How much of the variance of a sweep's results each parameter explains."""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from lightning_score.sweep.results import Row, numeric

MOST = 100
"""Maximal number of trials for functional ANOVA, which takes 3 seconds for 100 and a minute for 1000."""
FANOVA = "functional ANOVA (Hutter et al. 2014)"
PED_ANOVA = "PED-ANOVA (Watanabe et al. 2023)"

optuna.logging.set_verbosity(optuna.logging.ERROR)


def importances(rows: Sequence[Row], names: Sequence[str], maximize: bool = False) -> tuple[dict[str, float], str]:
    """Each parameter's share, the largest first, and the method's name; no shares for fewer than four different results.

    Args:
        rows: complete trials with finite values.
        names: the parameters that vary.
        maximize: whether larger values are better.
    """
    evaluator: BaseImportanceEvaluator = PedAnovaImportanceEvaluator()
    method = PED_ANOVA
    if len(rows) <= MOST:
        evaluator, method = FanovaImportanceEvaluator(seed=0), FANOVA
    laws = {name: law for name in names if (law := _law(rows, name)) is not None}
    if len(rows) < 4 or len({row.value for row in rows}) < 2 or not laws:
        return {}, method
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    for row in rows:
        params = {name: _value(row, name, law) for name, law in laws.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=laws, value=row.value))
    with suppress(ValueError, RuntimeError):
        return {k: float(v) for k, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}, method
    return {}, method


def _law(rows: Sequence[Row], name: str) -> BaseDistribution | None:
    """The range of a parameter's numbers, or its choices; None if all trials have the same value."""
    if numeric(rows, name) and all(math.isfinite(row.settings[name]) for row in rows):
        values = [float(row.settings[name]) for row in rows]
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high > 20 * low) if high > low else None
    texts = sorted({row.text(name) for row in rows})
    return CategoricalDistribution(texts) if len(texts) > 1 else None


def _value(row: Row, name: str, law: BaseDistribution) -> Any:
    return float(row.settings[name]) if isinstance(law, FloatDistribution) else row.text(name)
