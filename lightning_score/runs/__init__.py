"""Runs: their folders, files and checkpoints, and the rendezvous of their processes."""

import lightning_score.torchvision_guard  # noqa: F401
