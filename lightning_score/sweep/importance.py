"""Which parameters of a sweep matter: functional ANOVA on its rows, on the means where training seeds are folded."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from lightning_score.sweep.charts import FEW, is_wide, values_of
from lightning_score.sweep.results import Results
from lightning_score.sweep.rows import Row, numeric

LEAST, MOST = 4, 200
"""Results below which no importance is computed, and above which PED-ANOVA is: functional ANOVA takes a minute for 1000."""


def importances(found: Results) -> dict[str, float]:
    """Each parameter's share of the variance of the metric, the largest first (functional ANOVA, Hutter et al. 2014; of more
    than 200 results PED-ANOVA, Watanabe et al. 2023).

    For functional ANOVA a random forest is fitted to the results. Choices, and parameters with few values, are categories
    of equal weight.
    Empty for fewer than four results, or if all are equal.

    Args:
        found: the results.
    """
    rows = found.ranked
    names = [name for name in found.varied if len(values_of(rows, name)) > 1]
    if len(rows) < LEAST or len({row.value for row in rows}) < 2 or not names:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator  # takes a second to import

    columns = {name: _column(rows, name) for name in names}
    laws = {name: law for name, (law, _) in columns.items()}
    study = optuna.create_study(direction="maximize" if found.maximize else "minimize")
    for i, row in enumerate(rows):
        params = {name: values[i] for name, (_, values) in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=laws, value=row.value))
    with suppress(ValueError, RuntimeError):
        quick = len(rows) > MOST
        evaluator = PedAnovaImportanceEvaluator() if quick else FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return {name: float(share) for name, share in shares.items()}
    return {}


def _column(rows: Sequence[Row], name: str) -> tuple[BaseDistribution, list[Any]]:
    """A parameter's distribution, and its values."""
    texts = values_of(rows, name)
    if not numeric(rows, name) or len(texts) <= FEW:
        return CategoricalDistribution(texts), [row.text(name) for row in rows]
    values = [float(row.settings[name]) for row in rows]
    return FloatDistribution(min(values), max(values), log=is_wide(values)), values
