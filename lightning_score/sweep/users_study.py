"""Draws trials by the user's own Optuna study, as W&B's scheduler does it, in any number of workers."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lightning_score.errors import InputError
from lightning_score.sweep.attempts import ERROR, SLOT, SURPLUS
from lightning_score.sweep.scheduler import DRAW, Scheduler

if TYPE_CHECKING:
    from wandb.sdk.sweeps.scheduler.optuna import OptunaOptimizer

warnings.filterwarnings("ignore", "Choices for a categorical distribution")  # lists and mappings are stored as JSON


class DrawnBefore(BaseSampler):
    """Draws all parameters of a trial before it runs, and stores them; a trial that runs again has them."""

    @abstractmethod
    def draw(self, study: Study, trial: FrozenTrial) -> None:
        """Draws the parameters of a trial."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if trial.params:
            return
        self.draw(study, trial)
        for name, law in trial.distributions.items():
            study._storage.set_trial_param(trial._trial_id, name, law.to_internal_repr(trial.params[name]), law)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}


class UsersStudy(DrawnBefore):
    """The study that the function `optimizer` of a sweep file makes, with its sampler and its state.

    W&B's scheduler holds one study in memory: it asks for a trial, and tells it the results that have arrived. Here each
    worker has a copy, which repeats all draws in their order, each after the same results. So all copies have the same
    state, also after a sweep was interrupted: with a seeded sampler, one worker draws the same trials as W&B with
    `--batch-size 1`. If a copy draws other values, because the sampler has no seed, the stored ones are added to it, as W&B
    does it.

    Args:
        scheduler: that of the sweep.
    """

    def __init__(self, scheduler: Scheduler):
        self._scheduler, self._repeats = scheduler, True
        self._reset()

    def _reset(self) -> None:
        self._optimizer: OptunaOptimizer | None = None
        self._names: list[str] = []  # of the drawn trials in the optimizer
        self._places: dict[int, str] = {}  # of the trials that are not told yet, by their places in the queue

    def draw(self, study: Study, trial: FrozenTrial) -> None:
        """Draws the parameters of a trial; none if the user's study has ended."""
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)  # a pruner may show only some
        try:
            with self._scheduler.naming(self._scheduler.optimizer):
                found = self._draw(trials, trial)
        except InputError as error:
            self._reset()
            found = {"error": str(error)}
        study._storage.set_trial_user_attr(trial._trial_id, DRAW, found)
        trial.user_attrs[DRAW] = found

    def _draw(self, trials: Sequence[FrozenTrial], trial: FrozenTrial) -> dict[str, Any]:
        """Draws a trial; returns its order, and the numbers of the trials whose results were told before it."""
        known = {each.number: each for each in trials}
        before = [each for each in trials if "order" in each.user_attrs.get(DRAW, {})]
        before.sort(key=lambda each: each.user_attrs[DRAW]["order"])
        if not self._follow(before, known):
            self._repeats = False
            self._reset()
            self._follow(before, known)
        ended = [each for each in trials if self._is_told(each)]
        ended.sort(key=lambda each: (str(each.datetime_complete), each.number))
        told = [each.number for each in ended]
        self._tell(told, known)
        made = self._made
        asked = [] if made.should_terminate_sweep() else made.ask_n_runs(1)
        for run in asked:
            drawn = made.trials[run.run_id]
            trial.params.update(drawn.params)
            trial.distributions.update(drawn.distributions)
            self._take(run.run_id, trial)
        return {"order": len(before), "told": told} if asked else {}

    @property
    def pruner(self) -> BasePruner:
        """The pruner of the user's study."""
        return self._made.study.pruner

    @property
    def _made(self) -> "OptunaOptimizer":
        if self._optimizer is None:
            self._optimizer = self._scheduler.optuna()
        return self._optimizer

    def _take(self, name: str, trial: FrozenTrial) -> None:
        self._names.append(name)
        self._places[trial.user_attrs[SLOT]] = name

    def _follow(self, before: Sequence[FrozenTrial], known: dict[int, FrozenTrial]) -> bool:
        """Repeats the draws that this copy has not made yet; returns whether it drew the same values."""
        from wandb.sdk.sweeps.run_state import RunState
        from wandb.sdk.sweeps.scheduler.optimizer import Run, RunConfig

        for each in before[len(self._names) :]:
            self._tell(each.user_attrs[DRAW]["told"], known)
            if self._repeats:
                names = [run.run_id for run in self._made.ask_n_runs(1)]
                if not names or self._made.trials[names[0]].params != each.params:
                    return False
            else:
                names = [self._made.tell_existing_active_run(Run(RunConfig.from_values(each.params), RunState.RUNNING, ""))]
            self._take(names[0], each)
        return True

    def _is_told(self, trial: FrozenTrial) -> bool:
        """Whether the study is told the end of a trial; a trial that will run again has no error."""
        if trial.user_attrs.get(SLOT) not in self._places or SURPLUS in trial.user_attrs:
            return False
        failed = trial.state == TrialState.FAIL and ERROR in trial.user_attrs
        return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def _tell(self, numbers: Sequence[int], known: dict[int, FrozenTrial]) -> None:
        """Tells the study the ends of trials, given by their numbers."""
        from wandb.sdk.sweeps.run_state import RunState
        from wandb.sdk.sweeps.scheduler.optimizer import RunConfig, RunWithMetrics

        metrics = self._made.metric_names()
        for number in numbers:
            trial = known[number]
            name = self._places.pop(trial.user_attrs[SLOT])
            state = {TrialState.COMPLETE: RunState.FINISHED, TrialState.FAIL: RunState.FAILED}.get(trial.state)
            steps = sorted(trial.intermediate_values.items())
            history = [{"_step": step, metrics[0]: value} for step, value in steps]
            values = dict(zip(metrics, trial.values or [], strict=False))
            self._made.tell_run(name, RunWithMetrics(RunConfig({}), state or RunState.RUNNING, "", values, history))
            if state is None:  # the pruner has stopped it
                self._made._tell_study(self._made.trials.pop(name), state=TrialState.PRUNED)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raises `InputError`: the search space asks for a parameter that it did not draw before."""
        place = f"scheduler: {self._scheduler.source}: {self._scheduler.search_space}"
        raise InputError(f"{place}: draws {param_name} only sometimes; the same parameters must give the same settings")
