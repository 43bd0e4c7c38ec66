"""Noise processes: two functions of time, alpha and sigma, and all that follows from them.

Every process is linear-Gaussian, `x_t = alpha(t) x_0 + sigma(t) z` with `z ~ N(0, I)`, and equivalent to the Ito equation
`dx = f(t) x dt + g(t) dw`. Time runs from 0 (data) to 1 (noise).
"""

from lightning_score.process.base import NoiseProcess, VariancePreserving
from lightning_score.process.continuous import VE, VP, Cosine, Linear, SubVP
from lightning_score.process.table import BetaChain, BetaTable, CosineTable, ScaledLinearBetas, SigmaTable, TableProcess

__all__ = ["VE", "VP", "BetaChain", "BetaTable", "Cosine", "CosineTable", "Linear", "NoiseProcess", "ScaledLinearBetas",
           "SigmaTable", "SubVP", "TableProcess", "VariancePreserving"]  # fmt: skip
