"""Starts a training of a comparison whose weights are pulled back to those that it started from, at every step.

    cyclip compare --config study_finetune --launcher "python benchmarks/pulled.py 100" --output_dir outputs/study_finetune_pulled

After each step w ← w − η·λ·(w − w₀), where η is the learning rate and λ the number given: weight decay, but towards the start instead
of zero (L2-SP; Li et al., 2018, https://arxiv.org/abs/1802.01483, without passing through AdamW's moments).
"""

import sys

import torch
from transformers import TrainerCallback

from modeling_cyclip import CyCLIPTrainer
from modeling_cyclip.commands import train


class PullToStart(TrainerCallback):
    def __init__(self, strength):
        self.strength = strength

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def on_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        rate = optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.lerp_(self.start[name], rate * self.strength)


class PulledTrainer(CyCLIPTrainer):
    def __init__(self, **options):
        super().__init__(**options)
        self.add_callback(PullToStart(STRENGTH))


if __name__ == "__main__":
    # As Python would be started: a strength, "-m", the program, and its arguments.
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    if "--lora_rank" in sys.argv:
        sys.exit(
            "error: an adapter begins at zero, where weight decay pulls it already: leave out the arms by LoRA (--arms)"
        )
    STRENGTH = float(sys.argv[1])
    train.CyCLIPTrainer = PulledTrainer
    train.main(sys.argv[4:])
