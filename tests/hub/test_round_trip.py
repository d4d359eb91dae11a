"""From a folder to the Hub and back in fresh processes with empty caches, by the code that the published card shows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoProcessor

from modeling_cyclip import CyCLIPModel
from tests.conftest import COLOURS, coloured_image
from tests.hub.conftest import ROOT
from tests.hub.loopback import Fault
from tests.hub.test_publish import Poison, card_of


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_cyclip":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder with the files that the card's samples name, and nothing of the models."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    Image.linear_gradient("L").convert("RGB").save(folder / "cat.jpg")
    rows = [f"{colour}.png,a {colour} picture" for colour in COLOURS]
    for colour in COLOURS:
        coloured_image(colour).save(folder / f"{colour}.png")
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return folder


def samples(card: ModelCard) -> dict[str, str]:
    """The card's code, by the first word that tells one from another."""
    code = re.findall(r"```(?:python|bash)\n(.*?)```", card.text, re.DOTALL)
    return dict(zip(("pipeline", "from_pretrained", "cyclip train"), code, strict=True))


def logits_before(folder: Path, image: Path) -> torch.Tensor:
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text=["a cat", "a dog"], images=Image.open(image), padding=True, return_tensors="pt")
    with torch.no_grad():
        return CyCLIPModel.from_pretrained(folder)(**inputs).logits_per_image


def run(code: str, hub, workplace: Path, name: str, token: str | None = None) -> subprocess.CompletedProcess:
    environment = hub.environment(workplace / f"home of {name}", token)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=workplace, env=environment)


def last_line(done: subprocess.CompletedProcess):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_opens_with_the_package_with_the_same_logits(hub, publish, run_folder, resnet_folder, workplace):
    code = ""
    for name, folder in (("vit", run_folder), ("resnet", resnet_folder)):
        assert publish(folder, f"tester/{name}").returncode == 0
        sample = samples(card_of(hub, f"tester/{name}"))["from_pretrained"]
        code += f"{sample}\n{name} = outputs.logits_per_image.tolist(), type(model).__name__\n"
    answers = last_line(run(f"{code}\nimport json\nprint(json.dumps([vit, resnet]))", hub, workplace, "the package"))
    assert [kind for _, kind in answers] == ["CyCLIPModel", "CyCLIPResNetModel"]
    for (logits, _), folder in zip(answers, (run_folder, resnet_folder), strict=True):
        torch.testing.assert_close(torch.tensor(logits), logits_before(folder, workplace / "cat.jpg"), atol=0, rtol=0)


def test_pipeline_without_the_package_gives_the_same_answers(hub, publish, run_folder, resnet_folder, workplace):
    code = ABSENT
    for name, folder in (("vit", run_folder), ("resnet", resnet_folder)):
        assert publish(folder, f"tester/{name}").returncode == 0
        sample = samples(card_of(hub, f"tester/{name}"))["pipeline"]
        assert ("trust_remote_code=True" in sample) == (name == "resnet")
        # The pipeline puts every label into a sentence; here the labels are the whole text, as in the logits before.
        sample = sample.replace('"a dog"]', '"a dog"], hypothesis_template="{}"')
        code += f"{sample}\n{name} = answers, type(classify.model).__module__\n"
    answers = last_line(run(f"{code}\nimport json\nprint(json.dumps([vit, resnet]))", hub, workplace, "transformers"))
    assert answers[0][1] == "transformers.models.clip.modeling_clip"
    assert answers[1][1].startswith("transformers_modules.tester.resnet.")
    for (labels, _), folder in zip(answers, (run_folder, resnet_folder), strict=True):
        expected = logits_before(folder, workplace / "cat.jpg").softmax(dim=-1)[0].tolist()
        scores = {label["label"]: label["score"] for label in labels}
        assert [scores["a cat"], scores["a dog"]] == pytest.approx(expected, abs=1e-7)


def test_training_on_from_the_hub_and_publishing_that(hub, publish, run_folder, workplace):
    assert publish(run_folder, "tester/vit").returncode == 0
    install, command = samples(card_of(hub))["cyclip train"].splitlines()
    assert install == 'pip install "cyclip[train]"'
    command += " --use_cpu --max_steps 2 --logging_steps 1 --per_device_train_batch_size 4 --learning_rate 1e-3"
    command += " --push_to_hub --hub_model_id tester/again --hub_private_repo true --license apache-2.0"
    environment = hub.environment(workplace / "home")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command.split(), capture_output=True, text=True, cwd=workplace, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]

    repo, files, card = hub.repos["tester/again"], hub.files("tester/again"), card_of(hub, "tester/again")
    assert repo.is_private and repo.log == ["initial commit", "End of training"]
    assert files["model.safetensors"] != hub.files("tester/vit")["model.safetensors"]
    assert {"config.json", "tokenizer.json", "run.json", "plots/training_curve.png"} <= set(files)
    assert "training_args.bin" not in files and not [path for path in files if path.startswith("checkpoint")]
    assert card.data.base_model == "tester/vit" and card.data.license == "apache-2.0"
    assert 'model="tester/again"' in card.text and "4 image-caption pairs" in card.text
    assert str(workplace) not in "".join(files[name].decode() for name in ("run.json", "README.md"))


def test_run_with_a_wrong_token_ends_before_training(hub, workplace):
    arguments = f"{ROOT}/training/run_cyclip.py --model_size nano --image_size 16 --patch_size 8 --vocab_size 560"
    arguments += " --train_file pairs.csv --use_cpu --per_device_train_batch_size 4 --output_dir out --push_to_hub"
    environment = hub.environment(workplace / "home", token="hf_wrong")
    command = [sys.executable, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=workplace, env=environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "error:" in done.stderr and "401" in done.stderr and not (workplace / "out" / "model.safetensors").exists()


DOWNLOADS = """
import json
from modeling_cyclip import CyCLIPModel

def attempt(name):
    try:
        return CyCLIPModel.from_pretrained(name).text_projection.weight.sum().item()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([attempt(name) for name in ("tester/vit", "tester/vit-2", "tester/vit-2", "tester/pickled")]))
"""


@pytest.mark.slow
def test_downloads_that_are_cut_off(hub, publish, run_folder, workplace, tmp_path):
    for repo_id in ("tester/vit", "tester/vit-2", "tester/pickled"):
        assert publish(run_folder, repo_id).returncode == 0
    # Somebody puts a pickle that runs a command in the place of the weights.
    torch.save({"logit_scale": Poison(tmp_path / "was_run")}, tmp_path / "pytorch_model.bin")
    head = hub.repos["tester/pickled"].commits[hub.repos["tester/pickled"].branches["main"]]
    del head["model.safetensors"]
    hub.edit("tester/pickled", "pytorch_model.bin", (tmp_path / "pytorch_model.bin").read_bytes())

    hub.faults = [
        Fault("GET", "/tester/vit/resolve/.*/model.safetensors", "truncate"),
        Fault("GET", "/tester/vit-2/resolve/.*/model.safetensors", "shorten"),
    ]
    resumed, refused, tried_again, poisoned = last_line(run(DOWNLOADS, hub, workplace, "downloads"))
    expected = CyCLIPModel.from_pretrained(run_folder).text_projection.weight.sum().item()
    assert resumed == expected
    assert "Consistency check failed" in refused
    assert tried_again == expected  # nothing of the half was kept
    assert "weights_only" in poisoned or "Weights only" in poisoned, poisoned
    assert not (tmp_path / "was_run").exists()
