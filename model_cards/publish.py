"""Publishes a checkpoint on the Hub: `cyclip publish` from a clone.

python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --dry_run
"""

import runpy
import sys
from pathlib import Path


if __name__ == "__main__":
    # By its path, as bin/cyclip does: importing the package, and torch with it, would take seconds even for --help.
    program = runpy.run_path(f"{Path(__file__).parents[1]}/modeling_cyclip/__main__.py")
    sys.exit(program["run"]("publish", sys.argv[1:]))
