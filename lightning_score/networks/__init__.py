"""Networks: functions of noisy data, a noise label and a class, that know neither process nor parametrization."""

from lightning_score.networks.base import Network as Network
from lightning_score.networks.conditioning import (
    FourierEmbedding as FourierEmbedding,
    NoiseEmbedding as NoiseEmbedding,
    PositionalEmbedding as PositionalEmbedding,
)
from lightning_score.networks.mlp import MLP as MLP
from lightning_score.networks.plusplus import DDPMpp as DDPMpp, NCSNpp as NCSNpp
from lightning_score.networks.refinenet import (
    NCSN as NCSN,
    NCSNv2 as NCSNv2,
    NCSNv2Deeper as NCSNv2Deeper,
    NCSNv2Deepest as NCSNv2Deepest,
)
from lightning_score.networks.unet import UNet as UNet
