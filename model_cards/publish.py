"""Publishes a checkpoint on the Hub: `cyclip publish` from a clone.

python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --dry_run
"""

from modeling_cyclip.commands.publish import main


if __name__ == "__main__":
    main()
