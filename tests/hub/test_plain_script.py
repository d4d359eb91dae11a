"""What the Trainer publishes from a script of one's own, which tells it nothing for the card."""

import json
import re
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from tests.conftest import COLOURS, coloured_image
from tests.hub.test_publish import card_of


SCRIPT = """
from datasets import Dataset
from transformers import AutoProcessor
from modeling_cyclip import CyCLIPConfig, CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments

def train(name, model, pairs):
    args = CyCLIPTrainingArguments(
        output_dir=name, hub_model_id=f"tester/{name}", report_to="tensorboard", use_cpu=True, max_steps=3, logging_steps=1,
        save_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, seed=7,
    )
    trainer = CyCLIPTrainer(
        model, args, train_dataset=pairs, processing_class=AutoProcessor.from_pretrained("tester/vit")
    )
    trainer.train()
    return trainer

rows = {"image": [f"{colour}.png" for colour in COLOURS], "text": [f"a {colour} picture" for colour in COLOURS]}
model = CyCLIPModel.from_pretrained("tester/vit", inmodal_cyclic_weight=0.5, crossmodal_cyclic_weight=0.125)
"""


@pytest.fixture
def run_script(hub, publish, run_folder, tmp_path):
    """Runs a script in a folder of pictures, against a Hub with a model to start from."""
    assert publish(run_folder, "tester/vit").returncode == 0
    for colour in COLOURS:
        coloured_image(colour).save(tmp_path / f"{colour}.png")

    def run(code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", f"COLOURS = {list(COLOURS)}\n{SCRIPT}\n{code}"],
            capture_output=True, text=True, cwd=tmp_path, env=hub.environment(tmp_path / "home of the script"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    return run


KNOWN = """
pairs = Dataset.from_dict(rows).rename_column("text", "caption")
train("known", model, pairs).push_to_hub(dataset_tags="user/name")
"""


def test_a_trainer_publishes_a_card_of_what_it_knows(hub, run_script, tmp_path):
    run_script(KNOWN)
    files, card = hub.files("tester/known"), card_of(hub, "tester/known")
    assert ModelCard.load(tmp_path / "known" / "README.md").text == card.text
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "zero-shot-image-classification" and data["library_name"] == "transformers"
    assert (data["base_model"], data["datasets"]) == ("tester/vit", "user/name")
    assert data["tags"] == ["clip", "cyclip", "contrastive-learning"] and "license" not in data
    for part in ("| 0.5 | 0.125 |", "datasets/user/name), 4 image-caption pairs.", "It was fine-tuned from [tester/vit]",
                 "**Length.** 3 steps, 3 epochs", "learning_rate: 0.001", "seed: 7", "max_steps: 3", "| its contrastive term |",
                 "plots/training_curve.png", 'model="tester/known"'):  # fmt: skip
        assert part in card.text
    assert not re.search("None|Not recorded|from scratch|More information needed", str(card))

    logs = {path for path in files if path.startswith("runs/")}
    assert len(logs) == 1 and files[logs.pop()]
    assert {path for path in files if not path.startswith("runs/")} == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "plots/training_curve.png",
        "preprocessor_config.json", "processor_config.json", "run.json", "tokenizer.json", "tokenizer_config.json",
        "trainer_state.json",
    }  # fmt: skip
    assert {"training_args.bin", "checkpoint-2"} <= {path.name for path in (tmp_path / "known").iterdir()}
    assert json.loads(files["run.json"])["model"] == {} and str(tmp_path) not in files["run.json"].decode()


UNKNOWN = """
model = CyCLIPModel(CyCLIPConfig.from_pretrained("tester/vit"))
trainer = train("unknown", model, Dataset.from_dict({"image": rows["image"], "caption": rows["text"]}))
trainer.push_to_hub()
words = {"language": "en", "license": "mit", "tags": "colours"}
trainer.push_to_hub(revision="told", finetuned_from="user/start", dataset_tags=["user/a", "user/b"], **words)
"""


def test_what_is_not_known_is_left_out_unless_it_is_told(hub, run_script):
    run_script(UNKNOWN)
    card = card_of(hub, "tester/unknown")
    assert not {"base_model", "datasets", "license", "language", "model-index"} & set(card.data.to_dict())
    assert "**Data.** 4 image-caption pairs.\n" in card.text and "fine-tuned from" not in card.text
    assert not re.search("None|Not recorded|from scratch|More information needed", str(card))

    told = ModelCard(hub.files("tester/unknown", "told")["README.md"].decode())
    assert (told.data.base_model, told.data.datasets) == ("user/start", ["user/a", "user/b"])
    assert (told.data.language, told.data.license) == ("en", "mit")
    assert told.data.tags == ["clip", "cyclip", "contrastive-learning", "colours"]
    for part in ("[user/a](https://huggingface.co/datasets/user/a), [user/b](https://huggingface.co/datasets/user/b), 4 image",
                 "It was fine-tuned from [user/start](https://huggingface.co/user/start).", "licensed under `mit`"):  # fmt: skip
        assert part in told.text


def test_a_script_of_transformers_examples_publishes_as_it_is(hub, run_script):
    run_script(
        "pairs = Dataset.from_dict(rows).rename_column('text', 'caption')\n"
        "train('ported', model, pairs).push_to_hub(\n"
        "    finetuned_from='tester/vit', tasks='contrastive-image-text-modeling', dataset='Pairs',\n"
        "    dataset_args='all', dataset_tags='user/pairs', model_name='Ported')"
    )
    data = card_of(hub, "tester/ported").data.to_dict()
    assert (data["base_model"], data["datasets"]) == ("tester/vit", "user/pairs")
