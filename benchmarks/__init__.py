"""`python -m benchmarks mix | cross_entropy | training | demo`: measurements, not tests."""
