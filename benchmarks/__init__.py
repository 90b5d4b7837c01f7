"""`python -m benchmarks COMMAND`: measurements, not tests."""

import os

# PyTorch's profiler, which tells the peak of memory, would write lines into the progress bar; it
# reads this when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
