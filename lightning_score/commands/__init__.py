"""The commands of the command line, and their options."""

import lightning_score.torchvision_guard  # noqa: F401
