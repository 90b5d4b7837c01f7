"""`python -m benchmarks COMMAND`: measurements, not tests."""

import os

# Set before torch is imported: PyTorch's profiler, which measures peak memory, would otherwise log
# into the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
