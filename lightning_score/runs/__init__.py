"""Runs: their folders, files and checkpoints, and the rendezvous of their processes."""
