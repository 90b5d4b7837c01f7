"""`python -m benchmarks COMMAND`: measurements, not tests."""

import os
import sys
from pathlib import Path

# PyTorch's profiler, which tells the peak of memory, would write lines into the progress bar; it
# reads this when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

# Models, and what lets torchvision be imported, are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
