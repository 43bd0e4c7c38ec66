"""Networks: functions of noisy data, a noise label and a condition, that know neither process nor parametrization."""

from lightning_score.networks.base import Network
from lightning_score.networks.conditioning import FourierEmbedding, NoiseEmbedding, PositionalEmbedding
from lightning_score.networks.mlp import MLP
from lightning_score.networks.plusplus import DDPMpp, NCSNpp
from lightning_score.networks.refinenet import NCSN, NCSNv2, NCSNv2Deeper, NCSNv2Deepest
from lightning_score.networks.unet import UNet

__all__ = ["MLP", "NCSN", "DDPMpp", "FourierEmbedding", "NCSNpp", "NCSNv2", "NCSNv2Deeper", "NCSNv2Deepest",
           "Network", "NoiseEmbedding", "PositionalEmbedding", "UNet"]  # fmt: skip
