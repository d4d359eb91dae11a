"""Switches of precision, speed and memory, with the gradient cache and without it."""

import math

import pytest
import torch

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Each with the relative error of a loss that its precision allows.
SWITCHES = {
    "eager attention": ({"attn_implementation": "eager"}, 1e-4),
    "sdpa": ({"attn_implementation": "sdpa"}, 1e-4),
    "gradient checkpointing": ({"gradient_checkpointing": True}, 1e-4),
    "fused AdamW": ({"optim": "adamw_torch_fused"}, 1e-4),
    # The compiler's machine code takes minutes on CPU; its tracing and the wrapper do not need it.
    "torch.compile, traced": ({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-4),
    "bf16": ({"bf16": True}, 2e-2),
    "bf16, gradient checkpointing": ({"bf16": True, "gradient_checkpointing": True}, 2e-2),
}
GPU_SWITCHES = {
    "fp16": ({"fp16": True}, 2e-2),
    "tf32": ({"tf32": True}, 1e-2),
    "torch.compile": ({"torch_compile": True}, 1e-3),
    "torch.compile, bf16": ({"torch_compile": True, "bf16": True}, 2e-2),
}


@pytest.fixture
def train(model, processor, pairs, tmp_path):
    """Trains two steps from the same weights; the losses and the final `logit_scale`."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def train(chunk_size, attn_implementation="sdpa", use_cpu=True, **options):
        model.load_state_dict(weights)
        # Above its bound, ln 100.
        model.logit_scale.data.fill_(4.7)
        model.set_attn_implementation(attn_implementation)
        arguments = CyCLIPTrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=use_cpu,
            per_device_train_batch_size=16,
            gradient_cache_chunk_size=chunk_size,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        trainer = CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log], model.logit_scale.item()

    return train


def assert_trains_alike(train, tolerance, use_cpu, options):
    reference, _ = train(None, use_cpu=use_cpu)
    assert len(reference) == 2
    for chunk_size in (None, 4):
        losses, logit_scale = train(chunk_size, use_cpu=use_cpu, **options)
        assert losses == pytest.approx(reference, rel=tolerance)
        assert math.log(100) - 1e-2 < logit_scale <= math.log(100) + 1e-6


@pytest.mark.parametrize("switch", SWITCHES)
def test_losses_are_those_of_the_plain_training_cached_or_not(train, switch):
    options, tolerance = SWITCHES[switch]
    assert_trains_alike(train, tolerance, True, options)


@needs_gpu
@pytest.mark.parametrize("switch", GPU_SWITCHES)
def test_losses_on_a_gpu_are_those_of_the_plain_training_cached_or_not(train, switch):
    options, tolerance = GPU_SWITCHES[switch]
    assert_trains_alike(train, tolerance, False, options)
