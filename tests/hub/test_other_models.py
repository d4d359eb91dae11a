"""Dual encoders that are no CLIP, from a folder to the Hub and back, by the code that the published card shows."""

import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_cyclip.configuration_cyclip import CyclicTerms
from modeling_cyclip.data.tokenizer import padding_of
from tests.dual_encoders import KINDS
from tests.hub.conftest import RUN, make_run_folder
from tests.hub.test_publish import card_of
from tests.hub.test_round_trip import ABSENT, last_line, run, workplace  # noqa: F401 (a fixture)


@pytest.fixture(params=["siglip", pytest.param("vision-text-dual-encoder", marks=pytest.mark.slow)])
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    torch.manual_seed(0)
    folder = make_run_folder(tmp_path / kind, *KINDS[kind]())
    terms = vars(CyclicTerms(inmodal_cyclic_weight=0.125))
    (folder / "run.json").write_text(json.dumps({**RUN, "cyclic_terms": terms}))
    return folder


def logits_of(folder, image):
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    options = {"padding": padding_of(model.config), "truncation": True, "return_tensors": "pt"}
    with torch.no_grad():
        return model(**processor(text=["a cat", "a dog"], images=Image.open(image), **options)).logits_per_image


def test_the_cards_code_opens_it_without_the_package(hub, publish, kind, folder, workplace):  # noqa: F811
    assert publish(folder, "tester/other").returncode == 0
    card = card_of(hub, "tester/other")
    assert "| 0.125 | 0.25 | none, as in the paper | 1.0 |" in card.text and kind in card.data.tags
    assert ("the sigmoid\nloss of" in card.text) == (kind == "siglip")
    *pipelines, sample, command = re.findall(r"```(?:python|bash)\n(.*?)```", card.text, re.DOTALL)
    assert len(pipelines) == (kind == "siglip") and "cyclip train --model_name_or_path tester/other" in command
    code = f"{ABSENT}{sample}\nimport json\nprint(json.dumps(probabilities.tolist()))"
    logits = logits_of(folder, workplace / "cat.jpg")
    expected = logits.sigmoid() if kind == "siglip" else logits.softmax(dim=-1)
    torch.testing.assert_close(torch.tensor(last_line(run(code, hub, workplace, "transformers"))), expected)


def test_it_is_trained_on_from_the_hub_and_published_again(hub, publish, kind, folder, workplace):  # noqa: F811
    assert publish(folder, "tester/other").returncode == 0
    command = f"{sys.executable} -m modeling_cyclip train --model_name_or_path tester/other --train_file pairs.csv"
    command += " --output_dir out --use_cpu --max_steps 2 --logging_steps 1 --per_device_train_batch_size 4"
    command += " --push_to_hub --hub_model_id tester/again"
    environment = hub.environment(workplace / "home")
    done = subprocess.run(command.split(), capture_output=True, text=True, cwd=workplace, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    files, card = hub.files("tester/again"), card_of(hub, "tester/again")
    assert {"config.json", "tokenizer.json", "processor_config.json", "run.json"} <= set(files)
    assert card.data.base_model == "tester/other" and "It was fine-tuned from [tester/other]" in card.text
