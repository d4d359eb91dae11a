"""Trains CLIP with cyclic consistency on image-caption pairs: `cyclip train` from a clone, and for accelerate.

accelerate launch training/run_cyclip.py --config training/recipes/cifar10.yaml
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__":
    # By its path, as bin/cyclip does: importing the package, and torch with it, would take seconds even for --help.
    program = runpy.run_path(f"{Path(__file__).parents[1]}/modeling_cyclip/__main__.py")
    sys.exit(program["run"]("train", sys.argv[1:]))
