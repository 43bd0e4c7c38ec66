"""Every subclass once, so that tests that loop over them cover a newcomer by its existence; and exact scores."""

import lightning_score.lean_imports  # noqa: F401

import gc
import inspect
import os
import signal

import pytest
import torch
from filelock import FileLock
from inception import inception_file

from lightning_score import process, sampling
from lightning_score.cli import run
from lightning_score.data import Mixture
from lightning_score.sampling.noise import NoiseSource
from lightning_score.score import parametrization
from lightning_score.score.function import ScoreField
from lightning_score.tensors import broadcast_to

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several that share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


LONGEST = ["test_quality.py", "test_readme.py", "test_sharding.py", "test_processes.py"]
"""Files of tests that begin first, so that no worker is left alone with one of them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """The garbage collector leaves out what is imported and collected, which lives as long as the process."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _variables(tmp_path_factory):
    """No runs on W&B, and a cache of the tests' own, also for what fixtures of modules do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _as_before_lightning(monkeypatch):
    """Without what Lightning sets when it starts other processes, and with Ctrl-C, which it ignores once interrupted."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, which is empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a short run of configs/ncsn.yaml, one for all workers; a test writes nothing into it."""
    base = tmp_path_factory.getbasetemp()
    runs = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with FileLock(f"{runs}.lock"):
        if not (runs / "finished").exists():
            options = ["--trainer.max_steps=30", "--trainer.val_check_interval=20", "--trainer.log_every_n_steps=5",
                       "--samples.num_samples=9", "--evaluate.num_samples=40", "--model.sampler.steps=2",
                       "--model.process.levels=10", "--model.objective.times=TableTimes",
                       "--trainer.callbacks+=LangevinHealth"]  # fmt: skip
            assert run(["fit", "--config=ncsn", f"--runs={runs}", *options]) == 0
            (runs / "finished").touch()
    return runs / "ncsn" / "latest"


@pytest.fixture(scope="session")
def checkpoint(trained):
    """Its last checkpoint, whose averaged and raw weights differ."""
    return trained / "last.ckpt"


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """The path of a file of Inception's weights, which are random."""
    return inception_file(tmp_path_factory.mktemp("inception"))


@pytest.fixture(autouse=True)
def _faults(request, record_property):
    """Notes what a test did to the program, by its mark `faults(kind, n)`."""
    for mark in request.node.iter_markers("faults"):
        record_property("fault", list(mark.args) if len(mark.args) > 1 else [*mark.args, 1])


def pytest_terminal_summary(terminalreporter):
    """The table of the faults that were tried."""
    tried, lost = {}, {}
    for outcome, counts in (("passed", {}), ("failed", lost)):
        for report in terminalreporter.stats.get(outcome, []):
            for name, (kind, n) in (each for each in report.user_properties if each[0] == "fault"):
                if report.when == "call" and name:
                    tried[kind] = tried.get(kind, 0) + n
                    counts[kind] = counts.get(kind, 0) + n
    if tried:
        terminalreporter.section("faults tried")
        for kind in sorted(tried):
            harm = f"{lost[kind]} in tests that failed" if kind in lost else "nothing lost"
            terminalreporter.write_line(f"{kind:<48}{tried[kind]:>7}   {harm}")


SMALL = {
    process.SigmaTable: {"sigma_max": 10.0, "levels": 200},
    process.BetaTable: {"steps": 200, "beta_min": 5e-4, "beta_max": 0.1},
    process.ScaledLinearBetas: {"steps": 200, "beta_min": 5e-4, "beta_max": 0.15},
    process.CosineTable: {"steps": 200, "beta_max": 0.5},
    process.BetaChain: {"betas": [5e-4 + 0.1 * (i / 199) ** 0.7 for i in range(200)]},
}
COARSE = {
    process.SigmaTable: {"sigma_max": 10.0, "levels": 4},
    process.BetaTable: {"steps": 4, "beta_min": 0.2, "beta_max": 0.8},
}


def concrete(module, base):
    """All classes of a module that derive from `base` and can be made."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, base)]
    return [c for c in classes if not inspect.isabstract(c) and c is not base]


CHAINS = [process.BetaChain, *concrete(process, process.BetaChain)]
PROCESSES = [p for p in concrete(process, process.NoiseProcess) if p is process.BetaTable or p not in CHAINS]
"""One of the chains, which differ in their betas only, stands for all."""
PARAMETRIZATIONS = concrete(parametrization, parametrization.Parametrization)
OWN_TESTS = (sampling.Restart, sampling.Consistency)
PREDICTORS = [
    kind for kind in concrete(sampling, sampling.Predictor) if kind not in OWN_TESTS and not kind.needs_observation
]
"""All but Restart, which needs levels of the process, Consistency, which is for other models, and DiffPIR, which needs an
observation: each has a test file.
"""
CORRECTORS = concrete(sampling, sampling.Corrector)
GRIDS = concrete(sampling, sampling.TimeGrid)


def pairs(predictors=PREDICTORS, correctors=CORRECTORS):
    """Each predictor alone, each corrector with one predictor; slow, the other combinations: they meet only in `plan`."""

    def pair(kind, corrector):
        marks = [] if corrector is None or kind is sampling.ReverseDiffusion else [pytest.mark.slow]
        return pytest.param(kind, corrector, id=f"{kind.__name__}-{type(corrector).__name__}", marks=marks)

    return [pair(kind, corrector) for kind in predictors for corrector in (None, *(c() for c in correctors))]


def quick(kind):
    """A predictor with its defaults, an adaptive one with loose tolerances."""
    return kind(rtol=0.1, atol=0.1) if getattr(kind, "adaptive", False) else kind()


@pytest.fixture(params=PROCESSES, ids=lambda c: c.__name__)
def noise_process(request):
    """Each noise process, tables with 200 entries."""
    return request.param(**SMALL.get(request.param, {}))


@pytest.fixture(params=PROCESSES, ids=lambda c: c.__name__)
def coarse_process(request):
    """Each noise process, tables with 4 entries, whose kinks an adaptive predictor sees one by one."""
    return request.param(**COARSE.get(request.param, {}))


class ExactScore(ScoreField):
    """A score in closed form, which counts its evaluations; subclasses define `exact(x, alpha, sigma)`."""

    evaluations = 0

    def forward(self, x, t, cond=None):
        self.evaluations += len(x)
        return self.exact(x, self.process.alpha(t), self.process.sigma(t))


class MixtureScore(ExactScore):
    """The exact score of a Gaussian mixture under a noise process."""

    def __init__(self, noise_process, mixture=None):
        super().__init__(noise_process)
        self.mixture = mixture or Mixture([[0.5, -1.0]], [0.5])

    def exact(self, x, alpha, sigma):
        return self.mixture.score(x, broadcast_to(alpha, x[:, 0]), broadcast_to(sigma, x[:, 0]))

    def denoised(self, x, t, cond=None):
        if t.ndim > 0 or not self.process.is_noise(t):
            return super().denoised(x, t, cond)
        self.evaluations += len(x)
        return (self.mixture.weights @ self.mixture.means).to(x).expand_as(x)


class ImageScore(ExactScore):
    """The exact score of independent Gaussian pixels N(mean, std^2), for samples of any shape."""

    def __init__(self, noise_process, mean=0.5, std=0.3):
        super().__init__(noise_process)
        self.mean, self.std = mean, std

    def exact(self, x, alpha, sigma):
        alpha, sigma = broadcast_to(alpha, x), broadcast_to(sigma, x)
        return (alpha * self.mean - x) / (alpha**2 * self.std**2 + sigma**2)


class QuickNoise(NoiseSource):
    """The draws of one generator for a whole batch: many particles, where the streams of samples would take long."""

    def __init__(self, shape, seed=0, dtype=torch.float64):
        self.shape, self.dtype, self.device = tuple(shape), dtype, "cpu"
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self):
        return torch.randn(self.shape, generator=self._generator, dtype=self.dtype)

    def uniform(self):
        return torch.rand(self.shape, generator=self._generator, dtype=self.dtype)

    def acceptance(self):
        return torch.rand(self.shape[0], generator=self._generator, dtype=self.dtype)


@pytest.fixture
def exact_score(noise_process):
    """The exact score of N((0.5, -1), 0.5^2 I) under each process."""
    return MixtureScore(noise_process)


def times(n=25, low=0.02, high=0.98):
    """Times strictly inside (0, 1), off the entries of the tables."""
    return torch.linspace(low, high, n, dtype=torch.float64) + 1e-4
