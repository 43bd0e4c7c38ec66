import lightning_score.torchvision_guard  # noqa: F401  (before anything imports torchvision)
