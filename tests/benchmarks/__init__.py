"""Benchmarks of this package and its peers: `python -m pytest tests/benchmarks -m benchmark`."""
