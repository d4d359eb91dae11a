"""Measures a checkpoint: `cyclip evaluate` from a clone, and for accelerate.

python evaluation/run_evaluation.py --model_name_or_path OUT --dataset cifar10 --output_dir results
"""

from modeling_cyclip.commands.evaluate import main


if __name__ == "__main__":
    main()
