"""Trains CLIP with cyclic consistency on image-caption pairs: `cyclip train` from a clone, and for accelerate.

accelerate launch training/run_cyclip.py --config training/recipes/cifar10.yaml
"""

from modeling_cyclip.commands.train import main


if __name__ == "__main__":
    main()
