"""What is timed beside what: `python -m pytest tests/benchmarks -m benchmark`."""
