"""Sampling: time grids, predictors, correctors and the samplers made of them."""
