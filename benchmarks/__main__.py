import argparse

import torch

from . import cross_entropy, demo, gpu, mix, paper, report, sass, training

COMMANDS = {
    "mix": lambda: mix.main(),
    "cross_entropy": lambda: cross_entropy.main(),
    "training": lambda: training.main(),
    "demo": lambda: demo.main(),
    "report": lambda: report.main(),
    "sass": lambda: sass.main(),
    "paper": lambda: paper.main(arguments.part, arguments.full),
}

parser = argparse.ArgumentParser(prog="python -m benchmarks", description="measure mmix_fast")
parser.add_argument("what", nargs="?", choices=COMMANDS, help="what to measure on the CPU")
parser.add_argument("part", nargs="*", help=f"of paper: {', '.join(paper.PARTS)}; default all")
parser.add_argument("--full", action="store_true", help="paper: more seeds")
parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: bandwidths")
arguments = parser.parse_args()
torch.set_num_threads(2)
torch.manual_seed(0)
if arguments.device == "cuda":
    gpu.main()
elif arguments.what:
    COMMANDS[arguments.what]()
else:
    parser.error("say what to measure, or --device cuda")
