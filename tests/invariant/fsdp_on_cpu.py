"""run_cyclip.py under the FSDP of training/accelerate/fsdp.yaml, in gloo processes on CPUs.

accelerate shards on GPUs only. It asks its process state which kind of device there is, so that answer is changed here.
"""

import os
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modeling_cyclip import CyCLIPTrainer
from modeling_cyclip.commands.train import main


LAUNCH = Path(__file__).parents[2] / "training" / "accelerate" / "fsdp.yaml"


def set_environment() -> None:
    """Sets what `accelerate launch --config_file fsdp.yaml` sets for FSDP."""
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(LAUNCH), "-"]))
    environment = prepare_multi_gpu_env(arguments)
    os.environ.update({name: value for name, value in environment.items() if "FSDP" in name})


def call_cpus_gpus() -> None:
    init = PartialState.__init__

    def told(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = told


def assert_shards() -> None:
    """Every training step asserts that FSDP2 holds the parameters in shards, the first one that it holds all of them."""
    step = CyCLIPTrainer.training_step

    def asserting(self, model, *args, **kwargs):
        assert isinstance(model, FSDPModule)
        # An evaluation leaves the parameters outside of the layers whole until the next step.
        sharded = model if self.state.global_step == 0 else model.vision_model.encoder.layers
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        return step(self, model, *args, **kwargs)

    CyCLIPTrainer.training_step = asserting


if __name__ == "__main__":
    set_environment()
    call_cpus_gpus()
    assert_shards()
    main()
