"""Observations that a user gives for samples: a file, whose settings of operator and noise the options must agree with."""

import json
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse._typehints import resolve_class_path_by_name
from jsonargparse._util import import_object

from lightning_score.commands.arguments import CONFIG, Arguments, Option
from lightning_score.commands.configs import read_config
from lightning_score.data import ScoreData
from lightning_score.errors import InputError, one_line, require
from lightning_score.guidance import Guidance
from lightning_score.guidance.observed import ObservationGuidance, only_observing
from lightning_score.observations import ObservationNoise, Operator
from lightning_score.observations.files import StoredObservation, keeps_constants, require_range, settings, to_floats
from lightning_score.runs.trust import ClassParser
from lightning_score.training.model import ScoreModel

KINDS = {"operator": Operator, "noise": ObservationNoise}


def with_settings(arguments: Arguments, stored: StoredObservation) -> Arguments:
    """The arguments with the operator and the noise of a file as options of the guidance, before those that are given."""
    taken = _arguments_of_guidance(arguments)
    own = [(f"--model.guidance.{name}", json.dumps(spec)) for name, spec in stored.settings.items() if name in taken]
    return replace(arguments, options=(*(Option(name, (text,), True) for name, text in own), *arguments.options))


def _arguments_of_guidance(arguments: Arguments) -> Sequence[str]:
    """The names of the arguments of the guidance that the options name, or else a configuration below them."""
    configs = [*(layer.config for layer in arguments.layers), *(read_config(Path(file)) for file in arguments.get(CONFIG))]
    parts = [model.get("guidance") for config in configs if isinstance(model := config.get("model"), Mapping)]
    below = [part.get("class_path") if isinstance(part, Mapping) else part for part in parts]
    named = [*below, *arguments.get("--model.guidance"), *arguments.get("--model.guidance.class_path")]
    name = next((str(name) for name in reversed(named) if name), "null")
    with suppress(Exception):  # null, or no such class, which the parser reports
        return [*signature(import_object(resolve_class_path_by_name(Guidance, name.lstrip("+")))).parameters]
    return [*KINDS] if name.startswith("{") else []


def observe(
    model: ScoreModel, data: ScoreData, stored: StoredObservation, path: str, each: int, ends: Sequence[float] | None
) -> ObservationGuidance:
    """Gives the guidance of a model the observations of a file, or A(x) of the samples x in it.

    Args:
        model: the model.
        data: its data.
        stored: the content of the file.
        path: of the file, for errors.
        each: samples per observation.
        ends: the option for the range of the data.

    Raises:
        InputError: file, options, guidance and sampler do not fit.
    """
    place, particles = f"--observation {path}", model.sampler.particles
    guidance = only_observing(model.guidance, place)
    require(
        each % particles == 0,
        f"--samples_per_observation {each}: must be a multiple of the sampler's particles={particles}, which share one",
    )
    operator, noise = guidance.operator, guidance.noise
    for name, spec in stored.settings.items():
        (own, arrays), (made, others) = (
            settings(part, name) for part in (getattr(guidance, name), _made(name, spec, place))
        )
        same = own == made and all(np.array_equal(values, others[key]) for key, values in arrays.items())
        require(same, f"--model.guidance.{name}: {path} was made with another {name}; leave the option out")
    ends = _agreed({place: stored.data_range, "the data": data.data_range, "--observation_range": ends})
    y, shape, observed = stored.y, model.shape, operator.observed_shape(model.shape)
    y = y[None] if tuple(y.shape) in (observed, shape) else y
    whole = tuple(y.shape[1:]) == shape != observed
    require(
        whole or y.dtype != torch.uint8 or ends is None or keeps_constants(operator, shape, ends),
        f"{place}: holds bytes, and {type(operator).__name__} leaves the range of the data; give floats in its units",
    )
    y = to_floats(y, ends, place, "--observation_range")
    y = operator.apply(y) if whole else y
    try:
        model.use(model.sampler, cast(Guidance, model.guidance).observe_with(y, each))
        if ends is not None and noise is not None:
            require_range(y, operator, noise, shape, ends, "y")
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return guidance.observe_with(y, each)


def _made(name: str, spec: Any, place: str) -> Any:
    """The operator or the noise of these settings."""
    parser = ClassParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=KINDS[name])
    try:
        return parser.instantiate_classes(parser.parse_object({name: spec}))[name]
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(f"{place}: its {name} cannot be made ({one_line(error)})") from error


def _agreed(ranges: dict[str, Sequence[float] | None]) -> Sequence[float] | None:
    """The range of the data, of which several places may know; None if none does."""
    known = {place: tuple(ends) for place, ends in ranges.items() if ends is not None}
    require(
        len(set(known.values())) <= 1,
        f"data_range: {' and '.join(f'{list(ends)} of {place}' for place, ends in known.items())}: must be the same; "
        "observations are in the range of the data",
    )
    return next(iter(known.values()), None)
