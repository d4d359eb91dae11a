"""Tiny random dual encoders of transformers, each with its processor."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPProcessor,
    BertConfig,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessorPil,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    ViTConfig,
    ViTImageProcessorPil,
)

from tests.conftest import COLOURS


WORDS = sorted({*COLOURS, "a", "number", "of", "photo", "picture", "shade", "square", *map(str, range(40))})
POSITIONS = 16
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 8}
# BERT's would draw other masks for chunks of a batch than for all of it.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# The ids of the special tokens as the published tokenizers have them.
BERT = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
ROBERTA = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SIGLIP = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def word_tokenizer(special: dict[str, str], template: str, **options) -> PreTrainedTokenizerFast:
    """A token for each word, the special tokens first, in a template such as `<s> $A </s>`."""
    vocabulary = {token: index for index, token in enumerate([*special.values(), *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in template.split() if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, **{"model_max_length": POSITIONS, **options})


def bert_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(BERT, "[CLS] $A [SEP]")


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(ROBERTA, "<s> $A </s>", model_input_names=["input_ids", "attention_mask"])


def text_config(tokenizer, **values) -> dict:
    return {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS, **values}


def siglip() -> tuple[PreTrainedModel, ProcessorMixin]:
    # As published: 64 positions and no mask. Scale and bias are those that the paper starts at.
    tokenizer = word_tokenizer(SIGLIP, "$A </s>", model_input_names=["input_ids"], model_max_length=64)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = text_config(tokenizer, projection_size=16, max_position_embeddings=64, **special)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10)
    return model, SiglipProcessor(SiglipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)


def vit_and_bert() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = bert_tokenizer()
    # Not so small that all embeddings are alike.
    spread = {"initializer_range": 0.2}
    configs = ViTConfig(**VISION, **spread), BertConfig(**text_config(tokenizer, **NO_DROPOUT, **spread))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=12)
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return VisionTextDualEncoderModel(config), VisionTextDualEncoderProcessor(image_processor, tokenizer)


def chinese_clip() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = bert_tokenizer()
    text = text_config(tokenizer, **NO_DROPOUT)
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    image_processor = ChineseCLIPImageProcessorPil(size={"height": 16, "width": 16}, crop_size=16)
    return ChineseCLIPModel(config), ChineseCLIPProcessor(image_processor, tokenizer)


def altclip() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = roberta_tokenizer()
    positions = {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
    text = text_config(tokenizer, project_dim=14, **positions, **NO_DROPOUT)
    config = AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    return AltCLIPModel(config), AltCLIPProcessor(_clip_images(), tokenizer)


def metaclip_2() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = roberta_tokenizer()
    text = text_config(tokenizer, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    config = MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=12)
    return MetaClip2Model(config), CLIPProcessor(_clip_images(), tokenizer)


def clip() -> tuple[PreTrainedModel, ProcessorMixin]:
    # In a configuration of before, the token 2 stands for the highest id.
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = word_tokenizer(special, "<s> $A </s>")
    text = text_config(tokenizer, pad_token_id=0, bos_token_id=2, eos_token_id=3, projection_dim=12)
    config = CLIPConfig(text_config=text, vision_config={**VISION, "projection_dim": 12}, projection_dim=12)
    return CLIPModel(config), CLIPProcessor(_clip_images(), tokenizer)


def _clip_images() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)


KINDS = {
    "siglip": siglip,
    "vision-text-dual-encoder": vit_and_bert,
    "chinese_clip": chinese_clip,
    "altclip": altclip,
    "metaclip_2": metaclip_2,
}
