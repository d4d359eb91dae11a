"""Compares CLIP and CyCLIP on the same data and seeds: `cyclip compare` from a clone.

python training/run_comparison.py --config training/recipes/comparisons/emoji.yaml
"""

from modeling_cyclip.commands.compare import main


if __name__ == "__main__":
    main()
