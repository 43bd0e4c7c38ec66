"""Noise processes: two functions of time, alpha and sigma, and all that follows from them.

Every process is linear-Gaussian, `x_t = alpha(t) x_0 + sigma(t) z` with `z ~ N(0, I)`, and equivalent to the Ito equation
`dx = f(t) x dt + g(t) dw`. Time runs from 0 (data) to 1 (noise).
"""

from lightning_score.process.base import NoiseProcess as NoiseProcess, VariancePreserving as VariancePreserving
from lightning_score.process.continuous import VE as VE, VP as VP, Cosine as Cosine, SubVP as SubVP
from lightning_score.process.table import (
    BetaChain as BetaChain,
    BetaTable as BetaTable,
    CosineTable as CosineTable,
    ScaledLinearBetas as ScaledLinearBetas,
    SigmaTable as SigmaTable,
    TableProcess as TableProcess,
)
