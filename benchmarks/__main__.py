import argparse

import torch

from . import cross_entropy, demo, mix, training

COMMANDS = {
    "mix": lambda: mix.main(),
    "cross_entropy": lambda: cross_entropy.main(),
    "training": lambda: training.main(),
    "demo": lambda: demo.main(),
}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description="measure mmix_fast")
parser.add_argument("what", choices=COMMANDS)
torch.set_num_threads(2)
torch.manual_seed(0)
COMMANDS[parser.parse_args().what]()
