"""Switches of precision, speed and memory, with the gradient cache and without it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPProcessor

from modeling_cyclip import (
    CyCLIPModel,
    CyCLIPResNetConfig,
    CyCLIPResNetModel,
    CyCLIPTrainer,
    CyCLIPTrainingArguments,
)
from modeling_cyclip.build_model import ModelArguments, build_model_and_processor
from tests.conftest import COLOURS, coloured_image


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


@pytest.mark.parametrize(
    "switch", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("torch.compile")) for name in SWITCHES]
)
def test_losses_are_those_of_the_plain_training_cached_or_not(train, switch):
    options, tolerance = SWITCHES[switch]
    assert_trains_alike(train, tolerance, True, options)


@needs_gpu
@pytest.mark.parametrize("switch", GPU_SWITCHES)
def test_losses_on_a_gpu_are_those_of_the_plain_training_cached_or_not(train, switch):
    options, tolerance = GPU_SWITCHES[switch]
    assert_trains_alike(train, tolerance, False, options)


# Precision of the weights


@pytest.fixture(params=["vit", "resnet"])
def save_checkpoint(request, model, processor, tmp_path):
    """Saves a model of either kind, and returns its folder."""
    if request.param == "resnet":
        torch.manual_seed(0)
        vision_config = {"depths": [1, 1, 1, 1], "embedding_size": 8, "num_attention_heads": 4, "image_size": 32}
        text_config = model.config.text_config.to_dict()
        model = CyCLIPResNetModel(CyCLIPResNetConfig(vision_config=vision_config, text_config=text_config))
        processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32), processor.tokenizer)

    def save(dtype, name):
        model.to(dtype).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_checkpoint_trains_as_its_float32_copy_does(save_checkpoint, dtype, pairs, tmp_path):
    folders = [save_checkpoint(dtype, "half"), save_checkpoint(torch.float32, "float32")]
    start, _ = build_model_and_processor(ModelArguments(model_name_or_path=str(folders[1])), ())
    trained = []
    for folder in folders:
        torch.manual_seed(0)
        model, processor = build_model_and_processor(ModelArguments(model_name_or_path=str(folder)), ())
        arguments = CyCLIPTrainingArguments(
            str(tmp_path / "out"), use_cpu=True, per_device_train_batch_size=8, max_steps=3, learning_rate=1e-5, bf16=True,
            lr_scheduler_type="constant", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor).train()
        trained.append(dict(model.named_parameters()))
    half, full = trained
    for name, parameter in start.named_parameters():
        assert half[name].dtype == torch.float32
        assert (half[name] - full[name]).norm() <= 1e-6 * full[name].norm(), name
        assert not torch.equal(full[name], parameter), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_trainer_refuses_to_train_half_precision_weights(model, processor, pairs, tmp_path, dtype):
    arguments = CyCLIPTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    model.to(dtype)
    with pytest.raises(ValueError, match=r"float16, in which .*from_pretrained\(\.\.\., dtype=torch\.float32\)"):
        CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)
    model.text_projection.float()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "text_projection.weight"
    CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)


def test_only_the_finished_model_is_saved_in_half_precision(model, processor, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    rows = ["image,caption"]
    for colour in COLOURS:
        coloured_image(colour).save(tmp_path / f"{colour}.png")
        rows.append(f"{colour}.png,a {colour} picture")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    command = [
        sys.executable, "-m", "modeling_cyclip.commands.train", "--model_name_or_path", tmp_path / "half",
        "--train_file", tmp_path / "pairs.csv", "--validation_file", tmp_path / "pairs.csv", "--use_cpu",
        "--per_device_train_batch_size", "4", "--max_steps", "2", "--save_steps", "1", "--learning_rate", "1e-2",
        "--save_dtype", "auto", "--report_to", "none", "--output_dir", tmp_path / "out",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr[-3000:]

    def dtypes(folder):
        return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}

    assert (dtypes(tmp_path / "out"), dtypes(tmp_path / "out" / "checkpoint-2")) == ({torch.bfloat16}, {torch.float32})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {part["dtype"] for part in (config, config["text_config"], config["vision_config"])} == {"bfloat16"}
    # The figures are those of the weights that were saved.
    reopened = CyCLIPModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    captions = [f"a {colour} picture" for colour in COLOURS]
    images = [coloured_image(colour) for colour in COLOURS]
    inputs = processor(text=captions, images=images, padding=True, return_tensors="pt")
    eval_loss = json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_loss"]
    assert reopened(**inputs, return_loss=True).loss.item() == pytest.approx(eval_loss, abs=1e-5)
