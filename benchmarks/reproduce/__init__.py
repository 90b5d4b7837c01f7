"""The paper's own experiments at its own scale: `python -m benchmarks reproduce`."""
