"""Runs checks on OS threads, with ThreadSanitizer preloaded (see test_tsan.py).

Arguments: the library, the module of checks, file and line of a barrier to disable ("" 0: none).
"""

import importlib
import importlib.util
import sys

import torch

from mmix_fast import ops
from tests.cuda_emulation.emulation import NAMESPACE

library, checks, file, line = sys.argv[1:]
torch.set_num_threads(1)  # torch's own threads are not what is tested
torch.manual_seed(0)
spec = importlib.util.spec_from_file_location("mmix_emulated_threads", library)
emulator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emulator)
ops.define(NAMESPACE)
emulator.disable_barrier(file, int(line))
module = importlib.import_module(f"tests.cuda_emulation.{checks}")
right = getattr(module, "run_few", module.run_all)(emulator, torch.float32)
print("came right" if right else "came wrong")
