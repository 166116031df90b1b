"""Measurements behind the README's numbers: `python -m benchmarks`."""
