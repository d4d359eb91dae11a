"""Compares CLIP and CyCLIP on the same data and seeds: `cyclip compare` from a clone.

python training/run_comparison.py --config training/recipes/comparisons/emoji.yaml
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__":
    # By its path, as bin/cyclip does: importing the package, and torch with it, would take seconds even for --help.
    program = runpy.run_path(f"{Path(__file__).parents[1]}/modeling_cyclip/__main__.py")
    sys.exit(program["run"]("compare", sys.argv[1:]))
