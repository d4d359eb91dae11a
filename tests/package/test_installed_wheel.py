"""A wheel in a fresh environment, with no file of the clone in reach: every command does its job on tiny data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(command, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env={**clean, **environment}
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The programs of a virtual environment that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], cwd=folder)
    (wheel,) = folder.glob("cyclip-*.whl")
    run([sys.executable, "-m", "venv", folder / "venv"], cwd=folder)
    install = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run([*install, "torch"], cwd=folder)  # first: pinned, it takes a CPU build where one is at hand
    run([*install, f"{wheel}[train,eval]"], cwd=folder)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def cyclip(environment, tmp_path_factory):
    """Runs `cyclip` in a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run([environment / "python", "-m", "modeling_cyclip.data.shapes", "outputs/quickstart/data"], cwd=folder)

    def call(*arguments):
        return run([environment / "cyclip", *arguments], cwd=folder, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="2")

    call.folder = folder
    return call


@pytest.fixture(scope="module")
def trained(cyclip):
    said = cyclip(
        "train",
        "--config",
        "quickstart",
        "--max_steps",
        "8",
        "--logging_steps",
        "2",
        "--use_cpu",
        "--output_dir",
        "out",
    )
    assert 'model="out"' in said
    return "out"


def test_no_general_name_becomes_importable(environment, cyclip):
    for name in ("training", "evaluation", "model_cards", "tests", "benchmarks", "hatch_build"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
        run([environment / "python", "-c", code], cwd=cyclip.folder)


def test_an_editable_install_exposes_the_package_alone(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("editable")
    run([sys.executable, "-m", "venv", "--system-site-packages", folder / "venv"], cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "editables"], cwd=folder)
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", ROOT], cwd=folder)
    code = (
        "from importlib.util import find_spec\n"
        "assert find_spec('modeling_cyclip').origin == {origin!r}\n"
        "assert not any(map(find_spec, ['training', 'evaluation', 'model_cards', 'tests', 'benchmarks']))"
    ).format(origin=str(ROOT / "modeling_cyclip" / "__init__.py"))
    run([python, "-c", code], cwd=folder)


def test_train_writes_a_checkpoint_that_plain_transformers_opens(environment, cyclip, trained):
    code = (
        "from transformers import pipeline\n"
        "answers = pipeline('zero-shot-image-classification', model='out')(\n"
        "    'outputs/quickstart/data/example.png', candidate_labels=['blue circle', 'red triangle'])\n"
        "assert {answer['label'] for answer in answers} == {'blue circle', 'red triangle'}"
    )
    run([environment / "python", "-I", "-c", code], cwd=cyclip.folder, HF_HUB_OFFLINE="1")


def test_train_goes_through_accelerate_s_launcher(cyclip):
    launch = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, "use_cpu": True}
    (cyclip.folder / "cpu.yaml").write_text(yaml.safe_dump(launch))
    cyclip(
        "train", "--accelerate_config", "cpu.yaml", "--num_processes", "1", "--config", "quickstart", "--max_steps", "2",
        "--output_dir", "launched",
    )  # fmt: skip
    assert (cyclip.folder / "launched" / "model.safetensors").is_file()


def test_evaluate_measures_it(cyclip, trained):
    cyclip(
        "evaluate", "--model_name_or_path", trained, "--dataset", "outputs/quickstart/data/test", "--plots", "true",
        "--output_dir", "results",
    )  # fmt: skip
    results = json.loads((cyclip.folder / "results" / "results.json").read_text())
    assert 0 <= results["results"][trained]["zero_shot"]["top1"]["value"] <= 1
    assert list((cyclip.folder / "results" / "plots").glob("*.png"))


def test_compare_trains_measures_and_reports(cyclip):
    comparison = {
        "recipe": "quickstart",
        "overrides": {"max_steps": 4, "logging_steps": 1, "use_cpu": True},
        "output_dir": "comparison",
        "seeds": [0],
        "num_parallel": 2,
        "arms": {
            "CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0},
            "CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.25},
        },
        "evaluations": {"held-out pairs": {"dataset": "outputs/quickstart/data/test"}},
    }
    (cyclip.folder / "comparison.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False))
    assert "minus the baseline" in cyclip("compare", "--config", "comparison.yaml")
    assert (cyclip.folder / "comparison" / "report.md").is_file()


def test_card_and_publish_say_what_they_would_publish(cyclip, trained):
    cyclip("card", trained, "--model_id", "user/shapes")
    card = (cyclip.folder / trained / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card
    said = cyclip("publish", trained, "user/shapes", "--dry_run", "--with_space")
    assert "model.safetensors" in said and "training_args.bin" in said.partition("left out")[2]
    assert "app.py" in said


def test_convert_writes_weights_and_reads_them_back(environment, cyclip, trained):
    cyclip("convert", trained, "weights.safetensors")
    assert "CyCLIPModel" in cyclip(
        "convert", "weights.safetensors", "converted", "--vision_heads", "4", "--text_heads", "4"
    )
    assert "usage: cyclip-convert" in run([environment / "cyclip-convert", "--help"], cwd=cyclip.folder)


def test_recipes_and_configurations_are_shipped(environment, cyclip):
    code = (
        "from modeling_cyclip.package_files import package_file\n"
        "assert len(list(package_file('training/recipes').glob('*.yaml'))) >= 8\n"
        "assert package_file('training/accelerate/fsdp.yaml').is_file()\n"
        "assert package_file('training/recipes/comparisons/names_only.txt').is_file()\n"
        "assert package_file('evaluation/benchmarks.yaml').is_file()\n"
        "assert package_file('model_cards/space/app.py').is_file()"
    )
    run([environment / "python", "-c", code], cwd=cyclip.folder)


PLAIN_SCRIPT = """
from PIL import Image
from transformers import AutoProcessor
from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments

rows = [{"image": Image.new("RGB", (32, 32), colour), "caption": f"a {colour} square"} for colour in ("red", "blue")]
arguments = CyCLIPTrainingArguments("plain", per_device_train_batch_size=2, max_steps=2, use_cpu=True)
trainer = CyCLIPTrainer(CyCLIPModel.from_pretrained("out"), arguments, rows, processing_class=AutoProcessor.from_pretrained("out"))
trainer.train()
trainer.save_model()
trainer.create_model_card()
"""


def test_without_any_extra_a_trainer_trains_and_writes_its_card(environment, cyclip, trained):
    # The last test: it takes away what the extras brought.
    extras = ["datasets", "evaluate", "scikit-learn", "scipy", "matplotlib", "tensorboard", "pandas", "pyarrow"]
    run([environment / "python", "-m", "pip", "uninstall", "--quiet", "--yes", *extras], cwd=cyclip.folder)
    run([environment / "python", "-c", PLAIN_SCRIPT], cwd=cyclip.folder, HF_HUB_OFFLINE="1")
    card = (cyclip.folder / "plain" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-image-classification" in card and "None" not in card
