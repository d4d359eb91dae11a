"""Measures a checkpoint: `cyclip evaluate` from a clone, and for accelerate.

python evaluation/run_evaluation.py --model_name_or_path OUT --dataset cifar10 --output_dir results
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__":
    # By its path, as bin/cyclip does: importing the package, and torch with it, would take seconds even for --help.
    program = runpy.run_path(f"{Path(__file__).parents[1]}/modeling_cyclip/__main__.py")
    sys.exit(program["run"]("evaluate", sys.argv[1:]))
