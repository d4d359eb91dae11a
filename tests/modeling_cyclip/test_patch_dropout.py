"""Patch dropout: which patches a training step reads, and that all else is as it is without."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPModel, CLIPVisionConfig, CLIPVisionModel, VisionTextDualEncoderModel

from modeling_cyclip import CyCLIPModel, CyCLIPResNetConfig, CyCLIPResNetModel, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.dual_encoder import pooled
from modeling_cyclip.fsdp import make_logit_scale_one_dimensional
from modeling_cyclip.gradient_cache import cached_step
from modeling_cyclip.patch_dropout import find_patches, patch_dropout
from tests.dual_encoders import KINDS, TOWER, VISION, clip, vit_and_bert


NUM_PATCHES = 4
PIXELS = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def clip_tower_and_bert():
    model, processor = vit_and_bert()
    vision_model = CLIPVisionModel(CLIPVisionConfig(**VISION))
    return VisionTextDualEncoderModel(vision_model=vision_model, text_model=model.text_model), processor


PATCHED = {name: make for name, make in KINDS.items() if name != "vision-text-dual-encoder"}
PATCHED |= {"clip": clip, "two towers": clip_tower_and_bert}


@pytest.mark.parametrize("kind", PATCHED)
def test_a_step_reads_the_class_token_and_other_patches_of_each_image(kind):
    model, _ = PATCHED[kind]()
    embeddings, num_before = find_patches(model.train())
    whole = embeddings(PIXELS)
    assert num_before == (0 if kind == "siglip" else 1) and whole.shape[1] == num_before + NUM_PATCHES
    with patch_dropout(model, 0.5):
        tokens = embeddings(PIXELS)
        assert pooled(model.get_image_features(pixel_values=PIXELS)).isfinite().all()
        model.eval()
        assert embeddings(PIXELS).equal(whole)
    assert embeddings.train()(PIXELS).equal(whole)

    assert tokens[:, :num_before].equal(whole[:, :num_before])
    subsets = set()
    for patches, all_patches in zip(tokens[:, num_before:], whole[:, num_before:], strict=True):
        kept = {number for number, patch in enumerate(all_patches) if (patches == patch).all(dim=1).any()}
        assert len(patches) == len(kept) == NUM_PATCHES // 2
        subsets.add(frozenset(kept))
    assert len(subsets) > 1


@pytest.mark.parametrize("share, kept", [(0.0, 4), (0.1, 4), (0.25, 3), (0.3, 3), (0.75, 1), (0.999, 1)])
def test_the_share_counts_to_the_nearest_patch_and_one_is_kept(model, share, kept):
    with patch_dropout(model.train(), share):
        assert model.vision_model.embeddings(PIXELS).shape[1] == 1 + kept


def inputs_of(processor):
    captions = [f"red picture {number}" for number in range(len(PIXELS))]
    return {**processor.tokenizer(captions, padding=True, return_tensors="pt"), "pixel_values": PIXELS}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_cache_draws_the_same_patches_in_both_passes(model, processor, checkpointing):
    model, inputs = model.double().train(), inputs_of(processor)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with patch_dropout(model, 0.5):
        torch.manual_seed(1)
        starts = range(0, len(PIXELS), 8)
        chunks = [model(**{name: tensor[start : start + 8] for name, tensor in inputs.items()}) for start in starts]
        embeds = {name: torch.cat([chunk[name] for chunk in chunks]) for name in ("image_embeds", "text_embeds")}
        model.compute_loss(**embeds, logit_scale=model.logit_scale.exp()).loss.backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        compute_loss = partial(model.compute_loss, cyclic_weight_factor=1.0)
        cached_step(model, inputs, 8, compute_loss, torch.Tensor.backward, nullcontext)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrapped_models_draw_the_same_patches(process_group, config, processor):
    weights, inputs, found = CyCLIPModel(config).state_dict(), inputs_of(processor), []
    for wrapper in ("none", "ddp", "fsdp2"):
        model = CyCLIPModel(config)
        model.load_state_dict(weights)
        make_logit_scale_one_dimensional(model)
        with patch_dropout(model.train(), 0.5):
            wrapped = DistributedDataParallel(model) if wrapper == "ddp" else model
            if wrapper == "fsdp2":
                # The embeddings are a unit of their own, to whose forward pass FSDP adds hooks.
                for module in (model.vision_model.embeddings, model):
                    fully_shard(module, mesh=dist.init_device_mesh("cpu", (1,)))
            torch.manual_seed(1)
            found.append(wrapped(**inputs, return_loss=True).loss.item())
        with patch_dropout(model, 0.5):  # a second training of a model that is sharded already
            assert model.vision_model.embeddings(PIXELS).shape[1] == 1 + NUM_PATCHES // 2
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@pytest.fixture
def make_trainer(processor, pairs, tmp_path):
    def make(model, processor=processor, **options):
        options = {"max_steps": 4, "logging_steps": 1, "patch_dropout": 0.5, "save_strategy": "no", **options}
        arguments = CyCLIPTrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, **options
        )
        return CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)

    return make


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture
def new_model(config):
    """Makes models of the same weights."""
    weights = CyCLIPModel(config).state_dict()

    def make():
        model = CyCLIPModel(config)
        model.load_state_dict(weights)
        return model

    return make


def test_a_resumed_training_is_the_same_bit_for_bit(make_trainer, new_model, tmp_path):
    whole, resumed = (make_trainer(new_model(), save_strategy="steps", save_steps=2) for _ in range(2))
    whole.train()
    torch.rand(100)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    expected = whole.model.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in resumed.model.state_dict().items())
    without = make_trainer(new_model(), patch_dropout=0.0)
    without.train()
    assert losses(without)[0] != losses(whole)[0]


@pytest.mark.parametrize(
    "switches, tolerance",
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"bf16": True}, 2e-2),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, 1e-5),
    ],
)
def test_switches_of_precision_and_memory_change_no_draw(make_trainer, new_model, switches, tolerance):
    plain, switched = (make_trainer(new_model(), **options) for options in ({}, switches))
    for trainer in (plain, switched):
        torch.manual_seed(1)
        trainer.train()
    assert losses(switched) == pytest.approx(losses(plain), rel=tolerance)


def test_a_model_compiled_before_leaves_out_patches_too(config):
    for share, kept in ((0.0, NUM_PATCHES), (0.5, NUM_PATCHES // 2)):
        model = CyCLIPModel(config).train()
        with patch_dropout(model, share):
            tower = torch.compile(model.vision_model, backend="eager")
            assert tower(pixel_values=PIXELS).last_hidden_state.shape[1] == 1 + kept


def test_the_trained_model_reads_all_patches_in_plain_transformers(make_trainer, model, tmp_path):
    names = set(model.state_dict())
    trainer = make_trainer(model)
    trainer.train()
    trainer.save_model()
    assert set(load_file(tmp_path / "model.safetensors")) == names
    assert "patch_dropout" not in (tmp_path / "config.json").read_text()
    opened = CLIPModel.from_pretrained(tmp_path).train()
    with torch.no_grad():
        features, expected = (each.get_image_features(pixel_values=PIXELS) for each in (opened, model.train()))
    assert features.last_hidden_state.shape[1] == 1 + NUM_PATCHES
    assert features.pooler_output.equal(expected.pooler_output)


def resnet():
    vision = {"depths": [1, 1, 1, 1], "embedding_size": 4, "num_attention_heads": 2, "image_size": 64}
    return CyCLIPResNetModel(CyCLIPResNetConfig(text_config={**TOWER, "vocab_size": 600}, vision_config=vision))


@pytest.mark.parametrize("make_model", [resnet, lambda: vit_and_bert()[0]], ids=["ResNet", "two towers"])
def test_towers_without_known_patches_are_refused(make_trainer, make_model):
    model = make_model()
    with pytest.raises(ValueError, match=f"a {type(model).__name__} with this vision tower has none of them"):
        make_trainer(model)


def test_a_frozen_tower_is_refused(make_trainer, model):
    model.vision_model.requires_grad_(False)
    with pytest.raises(ValueError, match="for a vision tower that trains, and this one is frozen"):
        make_trainer(model)


def test_a_share_that_leaves_out_no_patch_is_refused(make_trainer, model):
    with pytest.raises(
        ValueError, match=f"leaves out none of the {NUM_PATCHES} patches of an image: take 0.25 or more"
    ):
        make_trainer(model, patch_dropout=0.1)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_what_is_no_share_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="`patch_dropout` is a share of the patches, at least 0 and below 1, got"):
        CyCLIPTrainingArguments(str(tmp_path), use_cpu=True, patch_dropout=share)
