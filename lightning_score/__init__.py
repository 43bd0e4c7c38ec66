"""Score-based generative models (NCSN, NCSNv2, DDPM, score SDE) as PyTorch Lightning experiments.

    ScoreModel                   the LightningModule: training loss and samples
    VP, SubVP, VE, Cosine, ...   noise processes (`lightning_score.process`)
    UNet, NCSN, NCSNpp, MLP, ... networks (`lightning_score.networks`)
    Digits, ImageFolder, ...     data (`lightning_score.data`)
    DenoisingScoreMatching, ...  objectives (`lightning_score.objective`)
    PredictorCorrector,          samplers; their predictors, correctors and time grids are in `lightning_score.sampling`
    AnnealedLangevin, ...
    ClassifierFree, ...          guidance (`lightning_score.guidance`)
    EMA, Evaluate, ...           callbacks (`lightning_score.callbacks`)

Public names are imported on first use, so that `python -m lightning_score --help` answers at once.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "lightning_score.training": "ScoreModel FullyShard",
    "lightning_score.score": "ScoreField ScoreFunction Parametrization NoiseLabel EmpiricalScore Density DensityScore",
    "lightning_score.process": "NoiseProcess VP SubVP VE Cosine Linear BetaTable ScaledLinearBetas CosineTable SigmaTable",
    "lightning_score.objective": (
        "Objective DenoisingScoreMatching ImplicitScoreMatching SlicedScoreMatching "
        "ExplicitScoreMatching ConsistencyTuning Weighting TimeDistribution"
    ),
    "lightning_score.guidance": (
        "Guidance Composed ClassifierFree ClassifierGuidance Autoguidance PseudoInverse Inpainting Colorization "
        "SuperResolution LinearOperator"
    ),
    "lightning_score.data.augmentation": "Augmentation GeometricAugmentation",
    "lightning_score.networks": "Network MLP NCSN NCSNv2 NCSNv2Deeper NCSNv2Deepest UNet DDPMpp NCSNpp",
    "lightning_score.sampling": (
        "Sampler PredictorCorrector ProbabilityFlow AnnealedLangevin ConsistentAnnealedLangevin "
        "LangevinDynamics MarkovChain TwistedSMC Predictor Corrector TimeGrid Samples"
    ),
    "lightning_score.sampling.likelihood": "Dequantization bits_per_dim log_likelihood",
    "lightning_score.data": "ScoreData ImageData CIFAR10 Digits FashionMNIST GaussianMixture ImageFolder MNIST",
    "lightning_score.metrics": "Features DigitFeatures FashionFeatures InceptionFeatures ModuleFeatures RawFeatures",
    "lightning_score.callbacks": "EMA BitsPerDim Ensembles Evaluate LossFloor Nats Posterior SampleGrid ScorePlot",
    "lightning_score.errors": "InputError",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightning_score' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
