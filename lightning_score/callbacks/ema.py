"""The exponential moving average of the weights, which the model holds in every evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Parameter

from lightning_score.callbacks.base import callbacks_of, fast_dev_run
from lightning_score.errors import require
from lightning_score.runs.averages import STATE, check_length, interval, kept_fraction, snapshot, thin
from lightning_score.training.sharding import check_strategy, load_weights, local, refresh, shard_like


class EMA(Callback):
    """Averages the weights during training, and lets the model hold the averages in every validation, test and prediction.

    After the n-th optimizer step, n = 1, 2, ..., with weights w_n:

        a_n = d_n a_(n-1) + (1 - d_n) w_n,    d_n = min(decay, (1 + n)/(10 + n)),    a_0 = w_0

    (Polyak and Juditsky, 1992; technique 5 of Song and Ermon, arXiv:2006.09011; the warm-up is score-SDE's,
    arXiv:2011.13456.) Only parameters are averaged: buffers, such as a table of sigmas, are the model's own.

    The model holds the averages from `on_validation_start` to `on_validation_end` (the same for test and predict), so
    that all callbacks see them in between, whatever their order in the list; anywhere else, use
    `with ema.averaged(model): ...`. Otherwise, also after training, the model holds its raw weights.

    A checkpoint has the layout of Lightning's `WeightAveraging`, so that each reads the other's: the averages are its
    `state_dict` (what `load_from_checkpoint` gives), the raw weights its `current_model_state`.

    With `lengths` it also keeps power-function averages (Karras et al. 2023, arXiv:2312.02696, section 3), of which
    those of any other length are made after training (`ema`, `--ema_length`). These are in every checkpoint, and
    snapshots of them in `averages/` of the trainer's root folder, at even steps; when there are too many, every second one
    is removed. In a run that continues one without them, the weights of all earlier steps are taken to be those it
    continues from.

    Args:
        decay: largest fraction of the average that one step keeps, in [0, 1); it averages over about 1/(1 - decay) steps.
        warmup: whether to begin with the smaller decay (1 + n)/(10 + n), so that the initial weights fade quickly.
        lengths: lengths of further averages, as [0.05, 0.1]: the standard deviation of the weighted steps, as a fraction of
            the steps so far; null: none.
        snapshots: the most snapshots of these that are kept, each with one number for each weight and length.

    Attributes:
        updates: steps of the average.
        raw_state: the raw weights of a checkpoint that is evaluated, if it has averages, too.
        length: the length of the averages of a checkpoint that is evaluated; None: those of `decay`.

    Raises:
        InputError: decay or a length is out of range, or the trainer cannot keep averages: weights sharded by another
            strategy than `fsdp2`, a ModelCheckpoint with save_weights_only, more than one EMA; or other lengths than
            those of the checkpoint from which training resumes.
    """

    def __init__(
        self, decay: float = 0.999, warmup: bool = True, lengths: Sequence[float] | None = None, snapshots: int = 16
    ) -> None:
        super().__init__()
        require(0.0 <= decay < 1.0, f"decay={decay}: must be in [0, 1), as in 0.999")
        self.decay = decay
        self.warmup = warmup
        require(lengths is None or len(lengths) > 0, "lengths=[]: must hold a length, as [0.05, 0.1], or be null")
        self.lengths = [float(length) for length in lengths or ()]
        for length in self.lengths:
            check_length("lengths=", length)
        require(len({*self.lengths}) == len(self.lengths), f"lengths={self.lengths}: each must be given once")
        require(snapshots >= 2, f"snapshots={snapshots}: must be at least 2, as in 16")
        self.snapshots = snapshots
        self.updates = 0
        self.length: float | None = None
        self._step = 0
        self._averages: dict[Parameter, Tensor] = {}
        self._powers: dict[float, dict[Parameter, Tensor]] = {}  # by length
        self._raw: dict[Parameter, Tensor] = {}  # the model's own weights while it holds the averages, else empty
        self._evaluation = ExitStack()
        self.raw_state: Mapping[str, Tensor] | None = None

    def decay_at(self, n: int) -> float:
        """The decay d_n of the n-th update, n = 1, 2, ...."""
        return min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Lets the model hold its averages inside a `with` block; harmless if it already does or if it has none."""
        if self._raw or not self._follows(pl_module):
            yield
            return
        self._follow_device()
        self._raw = {parameter: parameter.detach().clone() for parameter in self._averages}
        _write(self._averages)
        try:
            yield
        finally:
            _write(self._raw)
            self._raw = {}

    @contextmanager
    def raw(self, pl_module: LightningModule) -> Iterator[None]:
        """Lets the model hold its raw weights inside a `with` block: those of the training that it is in, or those of the
        checkpoint that is evaluated (`raw_state`); does nothing if it holds them already or if there are none.
        """
        with ExitStack() as afterwards:
            if self._raw:
                _hold(pl_module, self._raw)
                afterwards.callback(_hold, pl_module, self._averages)
            elif self.raw_state is not None:
                held = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
                pl_module.load_state_dict(self.raw_state)
                afterwards.callback(pl_module.load_state_dict, held)
            yield

    # The averages: initialized by the first fit, updated after each optimizer step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses, before training, a trainer under which the averages would be lost or wrong."""
        if stage != TrainerFn.FITTING:
            return
        check_strategy(trainer)
        partial = any(getattr(checkpoint, "save_weights_only", False) for checkpoint in trainer.checkpoint_callbacks)
        require(not partial, "EMA: ModelCheckpoint's save_weights_only=true leaves out the averages; set it to false")
        require(len(callbacks_of(trainer, EMA)) == 1, "EMA: the trainer has more than one EMA callback; leave one")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initializes the averages, unless they continue from a checkpoint or an earlier fit of this model."""
        if not self._follows(pl_module):
            self.begin(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts optimizer steps from here, and moves the averages to the device of the weights."""
        self._step = trainer.global_step
        self._follow_device()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the averages if the batch ended with an optimizer step; with accumulated gradients not all do."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.update()
        due = self._powers and not fast_dev_run(trainer) and self.updates % interval(self.updates, self.snapshots) == 0
        if due:
            self._save_snapshot(trainer, pl_module)

    @torch.no_grad()
    def update(self) -> None:
        """One step of the averages towards the weights."""
        self.updates += 1
        weights = [local(parameter).to(average.dtype) for parameter, average in self._averages.items()]
        powers = [(power, kept_fraction(length, self.updates)) for length, power in self._powers.items()]
        for kept, decay in [(self._averages, self.decay_at(self.updates)), *powers]:
            torch._foreach_lerp_([local(average) for average in kept.values()], weights, 1.0 - decay)

    def _save_snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the averages of this step, as a checkpoint is written, and removes snapshots that are not kept any more."""
        folder = Path(trainer.default_root_dir)
        content = {"global_step": self.updates, STATE: self._named_powers(_named_parameters(pl_module))}
        trainer.strategy.save_checkpoint(content, snapshot(folder, self.updates))
        if trainer.is_global_zero:
            thin(folder, self.updates, self.snapshots)

    def _named_powers(self, named: Mapping[str, Parameter]) -> dict[float, dict[str, Tensor]]:
        return {
            length: {name: power[parameter] for name, parameter in named.items()} for length, power in self._powers.items()
        }

    # Evaluations use the averages

    def _hold_averages(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation.enter_context(self.averaged(pl_module))

    def _hold_raw(self, *_: Any, **__: Any) -> None:
        self._evaluation.close()

    on_validation_start = on_test_start = on_predict_start = _hold_averages
    on_validation_end = on_test_end = on_predict_end = on_exception = _hold_raw

    # Checkpoints hold both

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves averages, raw weights and the number of updates, whichever weights the model holds."""
        if not self._follows(pl_module):
            return
        state = checkpoint["state_dict"]
        named = {name: parameter for name, parameter in _named_parameters(pl_module).items() if name in state}
        raw = {name: self._raw.get(parameter, parameter.detach()) for name, parameter in named.items()}
        averages = {name: self._averages[parameter] for name, parameter in named.items()}
        checkpoint["current_model_state"] = {**state, **raw}
        checkpoint["state_dict"] = {**state, **averages}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.updates)}
        if self._powers:
            checkpoint[STATE] = self._named_powers(named)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resumes from a checkpoint, or from its weights if it has no averages; its `state_dict` is loaded already."""
        if trainer.state.fn != TrainerFn.FITTING and not self._follows(pl_module):
            return  # a model that is only evaluated needs no more than the averages, which are loaded
        self.begin(pl_module)
        if "current_model_state" not in checkpoint:
            return
        stored, raw = checkpoint.get(STATE) or {}, checkpoint["current_model_state"]
        same = not stored or not self.lengths or [*stored] == self.lengths
        require(same, f"lengths={self.lengths}: the checkpoint has averages of the lengths {[*stored]}; give the same")
        for name, parameter in _named_parameters(pl_module).items():
            for kept, state in [(self._averages, checkpoint["state_dict"]),
                                *((power, stored.get(length, raw)) for length, power in self._powers.items())]:  # fmt: skip
                average = shard_like(state.get(name, parameter.detach()), parameter)
                local(kept[parameter]).copy_(local(average))
        self.updates = int(checkpoint["averaging_state"]["n_averaged"])
        load_weights(pl_module, raw, pl_module.strict_loading)

    def begin(self, pl_module: LightningModule) -> None:
        """Sets the averages to the weights, at least in single precision: half precision would lose small updates."""
        self.updates = 0
        self._averages, *powers = (
            {
                parameter: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
                for parameter in _named_parameters(pl_module).values()
            }
            for _ in range(1 + len(self.lengths))
        )
        self._powers = dict(zip(self.lengths, powers, strict=True))

    def _follows(self, pl_module: LightningModule) -> bool:
        """Whether the averages are those of this model."""
        return bool(self._averages) and self._averages.keys() == set(_named_parameters(pl_module).values())

    def _follow_device(self) -> None:
        """Moves the averages to where the weights are; Lightning moves these at the start and the end of a fit."""
        self._averages, *powers = (
            {parameter: average.to(parameter.device) for parameter, average in kept.items()}
            for kept in (self._averages, *self._powers.values())
        )
        self._powers = dict(zip(self._powers, powers, strict=True))


def _named_parameters(module: LightningModule) -> dict[str, Parameter]:
    """The floating-point parameters by all their names, as in the state dict."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if parameter.is_floating_point()}


@torch.no_grad()
def _write(values: Mapping[Parameter, Tensor]) -> None:
    """Writes new values into parameters in place: they remain the objects that the optimizer knows."""
    torch._foreach_copy_([local(parameter) for parameter in values], [local(value) for value in values.values()])


def _hold(pl_module: LightningModule, values: Mapping[Parameter, Tensor]) -> None:
    """Writes new values while the weights may be unsharded."""
    _write(values)
    refresh(pl_module)
