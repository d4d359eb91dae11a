"""One rule for the length of captions and for the tokenizer, wherever they are tokenised: collator, Trainer, evaluation."""

import copy
import logging

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from modeling_cyclip import CyCLIPDataCollator, CyCLIPTrainer, CyCLIPTrainingArguments
from modeling_cyclip.data import tokenizer as tokenizer_module
from modeling_cyclip.evaluation.embeddings import text_embeddings
from tests.conftest import coloured_image


LONG = "red number " * 40  # the model has 16 positions


@pytest.fixture
def with_length(processor):
    def make(model_max_length):
        other = copy.deepcopy(processor)
        other.tokenizer.model_max_length = model_max_length
        return other

    return make


@pytest.fixture
def without_end(processor):
    """As the tokenizers of GPT-2, Llama and Qwen."""
    other = copy.deepcopy(processor)
    other.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=["$A"])
    return other


@pytest.fixture
def make_trainer(model, pairs, tmp_path):
    def make(processor, **options):
        arguments = CyCLIPTrainingArguments(
            str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=8,
            max_steps=1,
            save_strategy="no",
            disable_tqdm=True,
        )
        dataset = pairs.remove_columns("caption").add_column("caption", [f"{row} {LONG}" for row in range(len(pairs))])
        return CyCLIPTrainer(model, arguments, train_dataset=dataset, processing_class=processor, **options)

    return make


@pytest.mark.parametrize("model_max_length", [77, 10**30])
def test_captions_beyond_the_models_positions_train(make_trainer, with_length, model_max_length):
    trainer = make_trainer(with_length(model_max_length))
    assert trainer.data_collator.max_length == 16
    trainer.train()


def test_evaluation_cuts_captions_as_training_does(model, with_length, processor):
    inputs = CyCLIPDataCollator(with_length(12))([{"image": coloured_image("red"), "caption": LONG}])
    assert inputs["input_ids"].shape == (1, 12)
    with torch.no_grad():
        features = model.eval().get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    embeds = text_embeddings(model, with_length(12), [LONG], normalize=False)
    assert torch.allclose(embeds, features, atol=1e-6)
    assert not torch.allclose(text_embeddings(model, processor, [LONG], normalize=False), embeds, atol=1e-4)


def test_a_cut_below_the_models_positions_is_said_at_the_start(make_trainer, with_length, caplog):
    tokenizer_module.logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING, "modeling_cyclip"):
        trainer = make_trainer(with_length(12))
    assert trainer.data_collator.max_length == 12
    assert [text for text in caplog.messages if "cut to 12 tokens" in text and "16" in text]


def test_a_collator_that_cuts_too_late_is_refused_by_the_trainer(make_trainer, with_length):
    processor = with_length(77)
    with pytest.raises(ValueError, match=r"max_length=16"):
        make_trainer(processor, data_collator=CyCLIPDataCollator(processor))
    make_trainer(processor, data_collator=CyCLIPDataCollator(processor, max_length=16)).train()


def test_a_tokenizer_that_does_not_fit_is_refused_by_the_trainer(make_trainer, without_end, processor):
    with pytest.raises(ValueError, match="does not end a text"):
        make_trainer(without_end)
    with pytest.raises(ValueError, match="does not end a text"):
        make_trainer(processor, data_collator=CyCLIPDataCollator(without_end))
    # A collator of one's own may put the end there itself.
    make_trainer(without_end, data_collator=lambda rows: CyCLIPDataCollator(processor)(rows))


def test_no_tokenizer_gets_the_whole_of_a_very_long_caption(model, processor, monkeypatch):
    lengths = []
    encode = type(processor.tokenizer).__call__

    def spy(tokenizer, texts, **options):
        lengths.extend(map(len, texts))
        return encode(tokenizer, texts, **options)

    monkeypatch.setattr(type(processor.tokenizer), "__call__", spy)
    CyCLIPDataCollator(processor)([{"image": coloured_image("red"), "caption": "x" * 100_000}])
    text_embeddings(model, processor, ["x" * 100_000])
    assert len(lengths) == 2 and max(lengths) < 10_000
