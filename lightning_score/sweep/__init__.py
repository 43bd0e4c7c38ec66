"""Sweeps: the W&B sweep files, run by W&B or on this machine."""
