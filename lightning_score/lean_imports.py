"""Imports Lightning: without what it asks of other packages only to recognize their objects, and with any torchvision.

`import lightning` takes three times as long as it needs to: for the class `Metric` it imports all of torchmetrics, and with
it torchvision and scipy.signal, and for the class `OptimizedModule` torch's compiler with sympy. Here both come when a
program first uses them. Nothing is changed for good: torchmetrics runs its `__init__` when it is asked for any other name,
and the compiler is replaced only while Lightning is imported. Versions that cannot be imported so are imported as usual.

Package indexes serve CUDA builds of torchvision even where torch is the CPU build. `pip check` finds nothing wrong, but
importing torchvision then fails with "operator torchvision::nms does not exist", and with it torchmetrics and
torch-fidelity. Declaring the two operators that torchvision expects of its compiled extension lets the import pass: all that
is written in Python (transforms, data sets, models) works; the compiled operators do not. A matching pair of builds never
enters the branch.

Every module that imports one of these packages imports this one first.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

METRICS, COMPILER = "torchmetrics", "torch._dynamo"


class _Partial(ModuleType):
    """A package whose `__init__` runs when it is asked for a name that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = ModuleType  # type: ignore[assignment]  # without this method
        _run_init(self)
        return getattr(self, name)


def _run_init(package: ModuleType) -> None:
    if package.__spec__ is not None and package.__spec__.loader is not None:
        package.__spec__.loader.exec_module(package)


def _import_metrics() -> None:
    """torchmetrics with `Metric` and `MetricCollection` alone."""
    spec = importlib.util.find_spec(METRICS)
    if spec is None:
        return
    package = importlib.util.module_from_spec(spec)
    sys.modules[METRICS] = package
    vars(package).update(_logger=logging.getLogger(METRICS), __version__=version(METRICS))  # which is asked for, too
    try:
        for module, name in (("metric", "Metric"), ("collections", "MetricCollection")):
            importlib.import_module(f"{METRICS}.utilities")
            vars(package)[name] = getattr(importlib.import_module(f"{METRICS}.{module}"), name)
        package.__class__ = _Partial
    except (ImportError, AttributeError):
        _run_init(package)


class _Compiled(type):
    """The class of a stand-in for `OptimizedModule`: its instances are those of the real one, once there can be any."""

    def __instancecheck__(cls, instance: Any) -> bool:
        compiler = sys.modules.get(COMPILER)
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Within it, `torch._dynamo` has only what Lightning's modules use while they are imported."""

    def disable(function: Callable[..., Any]) -> Callable[..., Any]:
        disabled = vars(torch)["_disable_dynamo"](function)  # which imports the compiler when it is called

        @wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return (disabled if COMPILER in sys.modules else function)(*args, **kwargs)

        return called

    compiler = ModuleType(COMPILER)
    stand_in = _Compiled("OptimizedModule", (), {})
    vars(compiler).update(OptimizedModule=stand_in, disable=lambda function, *_, **__: disable(function))
    sys.modules[COMPILER] = compiler
    try:
        yield
    finally:
        del sys.modules[COMPILER]


def _import_lightning() -> None:
    if METRICS not in sys.modules:
        _import_metrics()
    if COMPILER in sys.modules or not hasattr(torch, "_disable_dynamo"):
        return
    try:
        with _without_compiler():
            import lightning.pytorch  # noqa: F401
    except (ImportError, AttributeError, TypeError):  # it uses more of the compiler
        for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
            del sys.modules[name]


def _torchvision_is_cuda_build() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    return "+cu" in (Path(spec.origin).parent / "version.py").read_text()


if torch.version.cuda is None and torch.version.hip is None and _torchvision_is_cuda_build():
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
if "lightning" not in sys.modules:
    _import_lightning()
