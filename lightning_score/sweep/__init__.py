"""Sweeps: the W&B sweep files, run by W&B or on this machine."""

import lightning_score.torchvision_guard  # noqa: F401
