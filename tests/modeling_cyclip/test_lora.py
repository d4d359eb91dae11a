"""LoRA: only adapters train, resume and merge; what is saved opens without this package."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPImageProcessor, CLIPModel, CLIPProcessor

from modeling_cyclip import CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel, CyCLIPTrainingArguments, build_model
from modeling_cyclip.build_model import ModelArguments, build_model_and_processor
from modeling_cyclip.commands.train import convert_weights
from modeling_cyclip.evaluation.embeddings import load_checkpoint
from modeling_cyclip.lora import LoraTrainer, add_lora
from tests.conftest import COLOURS, coloured_image


SCRIPT = Path(__file__).parents[2] / "training" / "run_cyclip.py"


@pytest.fixture
def base(model, processor, tmp_path):
    """A checkpoint as fine-tuning finds it, weights away from the initialisation's zeros."""
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def make_trainer(base, pairs, tmp_path):
    def make(lora=None, **options):
        torch.manual_seed(0)
        args = ModelArguments(model_name_or_path=str(base), **{"lora_rank": 2, **(lora or {})})
        model, processor = build_model_and_processor(args, ())
        options = {"max_steps": 4, "learning_rate": 1e-2, "save_strategy": "no", **options}
        training_args = CyCLIPTrainingArguments(
            output_dir=str(tmp_path / "out"), use_cpu=True, per_device_train_batch_size=8, disable_tqdm=True, **options
        )
        return LoraTrainer(model, training_args, train_dataset=pairs, eval_dataset=pairs, processing_class=processor)

    return make


def inputs(processor):
    return processor(
        text=["red number 1", "a blue picture"],
        images=[coloured_image("red"), coloured_image("blue")],
        padding=True,
        return_tensors="pt",
    )


@torch.no_grad()
def embeds(model, processor):
    outputs = model.eval()(**inputs(processor))
    return torch.cat([outputs.image_embeds, outputs.text_embeds])


def adapters(trainer):
    return {name: tensor for name, tensor in trainer.model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("towers", [("vision", "text"), ("vision",), ("text",)])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_adapters_train_and_the_checkpoints_weights_stay(make_trainer, base, towers, chunk_size):
    trainer = make_trainer({"lora_towers": list(towers)}, gradient_cache_chunk_size=chunk_size)
    assert isinstance(trainer.model, CyCLIPModel)
    before = {name: tensor.clone() for name, tensor in adapters(trainer).items()}
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert set(before) == trainable and len(trainable) == 2 * 4 * 2 * len(towers)
    assert {name.split("_model")[0] for name in trainable} == set(towers)
    trainer.train()
    assert all(not torch.equal(before[name], tensor) for name, tensor in adapters(trainer).items())
    original = CyCLIPModel.from_pretrained(base).state_dict()
    trained = trainer.model.state_dict()
    assert all(torch.equal(tensor, trained.get(name, trained.get(_inside(name)))) for name, tensor in original.items())


def _inside(name):
    layer, _, kind = name.rpartition(".")
    return f"{layer}.base_layer.{kind}"


def test_untrained_adapters_change_nothing(make_trainer, base, processor):
    assert torch.equal(embeds(make_trainer().model, processor), embeds(CyCLIPModel.from_pretrained(base), processor))


def test_gradient_cache_trains_the_same_adapters(make_trainer):
    whole, cached = make_trainer(), make_trainer(gradient_cache_chunk_size=4)
    whole.train()
    cached.train()
    torch.testing.assert_close(adapters(cached), adapters(whole), atol=1e-5, rtol=1e-4)


def test_the_adapter_opens_in_plain_transformers(make_trainer, base, processor, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    expected = embeds(trainer.model, processor)
    assert not torch.allclose(expected, embeds(CLIPModel.from_pretrained(base), processor), atol=1e-3)
    out = tmp_path / "out"
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert LoraConfig.from_pretrained(out).base_model_name_or_path == str(base)
    loaded = CLIPModel.from_pretrained(base)
    loaded.load_adapter(str(out))
    evaluated, _ = load_checkpoint(str(out), "fp32", torch.device("cpu"))
    for reopened in (loaded, AutoModel.from_pretrained(out), CyCLIPModel.from_pretrained(out), evaluated):
        torch.testing.assert_close(embeds(reopened, processor), expected, atol=1e-6, rtol=0)


def test_merged_weights_are_a_clip_checkpoint_with_the_adapters_outputs(make_trainer, processor, tmp_path):
    trainer = make_trainer({"lora_alpha": 3, "merge_lora": True})
    trainer.train()
    expected = embeds(trainer.model, processor)
    trainer.merge()
    trainer.save_model()
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["CLIPModel"]
    plain, info = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"])
    torch.testing.assert_close(embeds(plain, processor), expected, atol=1e-6, rtol=0)
    assert torch.isfinite(torch.tensor(trainer.evaluate()["eval_loss"]))


def test_frozen_towers_may_be_in_half_precision(base, processor, pairs, tmp_path):
    model = CyCLIPModel.from_pretrained(base, dtype=torch.bfloat16)
    add_lora(model, ModelArguments(model_name_or_path=str(base), lora_rank=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = CyCLIPTrainingArguments(
        str(tmp_path / "out"), use_cpu=True, per_device_train_batch_size=8, max_steps=2, save_strategy="no"
    )
    trainer = LoraTrainer(model, arguments, train_dataset=pairs, processing_class=processor)
    trainer.train()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
        assert torch.equal(tensor, before[name]) == ("lora_" not in name), name


def test_merged_weights_are_saved_in_the_precision_asked_for(make_trainer, processor, tmp_path):
    trainer = make_trainer({"merge_lora": True, "save_dtype": "float16"})
    trainer.train()
    trainer.merge()
    expected = embeds(trainer.model, processor)
    convert_weights(trainer.model, "float16")
    trainer.save_model()
    reopened = CyCLIPModel.from_pretrained(tmp_path / "out")
    assert reopened.dtype == torch.float16
    torch.testing.assert_close(embeds(reopened.float(), processor), expected, atol=5e-3, rtol=0)


def test_an_adapter_does_not_hide_what_its_checkpoint_lacks(make_trainer, base, tmp_path):
    make_trainer().save_model()
    weights = load_file(base / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for opened_by in (CyCLIPModel.from_pretrained, lambda out: load_checkpoint(str(out), "fp32", torch.device("cpu"))):
        with pytest.raises(ValueError, match=r"lacks weights .*: text_projection\.weight and 0 others"):
            opened_by(tmp_path / "out")


def test_an_adapter_must_be_whole(make_trainer, tmp_path):
    make_trainer().save_model()
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "out" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"out lacks weights .*lora_A.* and 0 others"):
        CyCLIPModel.from_pretrained(tmp_path / "out")


def test_resumed_is_the_same_training(make_trainer, tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(**options)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert (checkpoint / "adapter_config.json").is_file() and not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, expected), actual in zip(adapters(whole).items(), adapters(resumed).values(), strict=True):
        assert torch.equal(expected, actual), name
    with pytest.raises(ValueError, match=r"has other adapters \(r 2, here 3\)"):
        make_trainer({"lora_rank": 3}, **options).train(resume_from_checkpoint=str(checkpoint))


def test_the_best_adapters_are_loaded_at_the_end(make_trainer, processor):
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = make_trainer(max_steps=3, learning_rate=100.0, load_best_model_at_end=True, **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None and not best.endswith("-3")
    torch.testing.assert_close(
        embeds(trainer.model, processor), embeds(CyCLIPModel.from_pretrained(best), processor), atol=1e-6, rtol=0
    )


def test_what_trains_is_logged(make_trainer, caplog):
    with caplog.at_level(logging.INFO, "modeling_cyclip"):
        make_trainer({"lora_towers": ["text"]})
    # Two layers, four projections of 16 to 16, rank 2.
    assert "LoRA of rank 2: 512 of " in caplog.text and "beside 8 attention projections (text tower)" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model_size": "nano"}, "tunes a checkpoint"),
        ({"model_name_or_path": "x", "freeze_text": True}, "leave out --freeze"),
        ({"model_name_or_path": "x", "lora_towers": ["audio"]}, "got audio"),
        ({"model_name_or_path": "x", "lora_rank": 0}, "at least 1"),
        ({"model_name_or_path": "x", "lora_rank": None, "merge_lora": True}, "go with --lora_rank"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelArguments(**{"lora_rank": 2, **options})


def test_without_peft_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(build_model, "is_peft_available", lambda: False)
    with pytest.raises(ValueError, match=r"pip install \"cyclip\[lora\]\""):
        ModelArguments(model_name_or_path="x", lora_rank=2)


def test_only_the_text_tower_of_a_resnet_model_takes_lora(processor, tmp_path):
    vision_config = {"depths": [1, 1, 1, 1], "embedding_size": 8, "num_attention_heads": 4, "image_size": 32}
    text_config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CyCLIPResNetConfig(
        vision_config=vision_config, text_config={**text_config, "vocab_size": len(processor.tokenizer)}
    )
    config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    CyCLIPResNetModel(config).save_pretrained(tmp_path)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), processor.tokenizer).save_pretrained(
        tmp_path
    )
    args = {"model_name_or_path": str(tmp_path), "lora_rank": 2}
    with pytest.raises(ValueError, match="vision tower has no attention layers"):
        build_model_and_processor(ModelArguments(**args), ())
    model, _ = build_model_and_processor(ModelArguments(**args, lora_towers=["text"]), ())
    model.train()
    pixel_values = torch.randn(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.vision_model.state_dict().items()}
    model(input_ids=torch.tensor([[1, 2], [3, 4]]), pixel_values=pixel_values, return_loss=True).loss.backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.vision_model.state_dict().items())


@pytest.fixture
def train_file(tmp_path):
    rows = []
    for level in range(4):
        for colour in COLOURS:
            coloured_image(colour, level).save(tmp_path / f"{colour}{level}.png")
            rows.append({"image": f"{colour}{level}.png", "caption": f"{colour} number {level}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def run(*arguments, launcher=(sys.executable,)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment
    )


@pytest.mark.slow
def test_the_script_saves_adapters_from_two_processes_and_merges_on_resuming(base, train_file, tmp_path):
    out = tmp_path / "out"
    common = [
        "--model_name_or_path", base, "--lora_rank", 2, "--train_file", train_file, "--use_cpu", "--disable_tqdm", "true",
        "--per_device_train_batch_size", 4, "--output_dir", out, "--save_strategy", "steps", "--save_steps", 2,
    ]  # fmt: skip
    two = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = run(*common, "--max_steps", 2, launcher=two)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (result.stdout + result.stderr).count("LoRA of rank 2: 1,024 of") == 1
    assert (out / "adapter_model.safetensors").is_file() and not (out / "README.md").exists()

    result = run("--model_name_or_path", out, "--train_file", train_file, "--use_cpu", "--output_dir", tmp_path / "b")
    assert result.returncode != 0 and "is an adapter: train on from" in result.stderr
    result = run(*common, "--push_to_hub")
    assert result.returncode != 0 and "error: An adapter is no checkpoint to publish." in result.stderr

    result = run("--model_name_or_path", base, "--train_file", train_file, "--use_cpu", "--output_dir", out)
    assert result.returncode != 0 and "has the adapter_config.json of another run" in result.stderr

    result = run(*common, "--max_steps", 3, "--merge_lora", "--resume_from_checkpoint")
    assert result.returncode == 0, result.stderr[-3000:]
    assert (out / "model.safetensors").is_file() and (out / "README.md").is_file()
    assert not list(out.glob("adapter_*"))
