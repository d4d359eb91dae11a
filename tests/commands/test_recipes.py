"""Every recipe is a valid command line, every accelerate file a valid launch."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from modeling_cyclip.arguments import parse_with_config
from modeling_cyclip.build_model import MODEL_SIZES, RESNET_SIZE
from modeling_cyclip.commands.train import parse_arguments
from modeling_cyclip.comparison.runs import ComparisonArguments, plan_runs


TRAINING = Path(__file__).parents[2] / "training"
RECIPES = {path.stem: path for path in sorted((TRAINING / "recipes").glob("*.yaml"))}
COMPARISONS = {path.stem: path for path in sorted((TRAINING / "recipes" / "comparisons").glob("*.yaml"))}
LAUNCHES = {path.stem: path for path in sorted((TRAINING / "accelerate").glob("*.yaml"))}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_for_machines_without_a_gpu_too(name, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model_args, _, training_args = parse_arguments(["--config", str(RECIPES[name])])
    assert model_args.model_size in (*MODEL_SIZES, RESNET_SIZE, None)
    assert training_args.output_dir.startswith("outputs/")
    assert training_args.device.type == "cpu"
    assert training_args.bf16 == yaml.safe_load(RECIPES[name].read_text()).get("bf16", False)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_plan_their_trainings(name, monkeypatch):
    monkeypatch.chdir(TRAINING.parent)
    (args,) = parse_with_config((ComparisonArguments,), ["--config", str(COMPARISONS[name])], "")
    runs = plan_runs(replace(args, overrides={**args.overrides, "use_cpu": True}, output_dir="outputs/untouched"))
    assert {run.arm for run in runs} == set(args.arms)


@pytest.mark.parametrize(
    "objective, weights",
    [("clip", (0, 0)), ("i_cyclip", (0.25, 0)), ("c_cyclip", (0, 0.25)), ("cyclip", (0.25, 0.25))],
)
def test_objectives_differ_by_their_weights_only(objective, weights):
    recipe = yaml.safe_load(RECIPES[f"cc3m_vit_b32_{objective}"].read_text())
    assert (recipe.pop("inmodal_cyclic_weight"), recipe.pop("crossmodal_cyclic_weight")) == weights
    reference = yaml.safe_load(RECIPES["cc3m_rn50"].read_text())
    differing = {name for name in reference if recipe.get(name) != reference[name]}
    # CLIP has no terms that could begin as in the paper.
    schedule = {"cyclic_start_ratio", "cyclic_warmup_ratio", "cyclic_max_gradient_share"}
    assert differing == {"model_size", "output_dir", "inmodal_cyclic_weight", "crossmodal_cyclic_weight"} | (
        schedule if objective == "clip" else set()
    )


@pytest.mark.parametrize(
    "name, processes, machines, fsdp",
    [("one_gpu", 1, 1, False), ("one_node", 8, 1, False), ("several_nodes", 16, 2, False), ("fsdp", 8, 1, True)],
)
def test_accelerate_reads_its_files(name, processes, machines, fsdp):
    arguments = launch_command_parser().parse_args(["--config_file", str(LAUNCHES[name]), "script.py"])
    arguments, *_ = _validate_launch_command(arguments)
    assert (arguments.num_processes, arguments.num_machines, arguments.use_fsdp) == (processes, machines, fsdp)
    assert arguments.multi_gpu == (processes > 1 and not fsdp)
    assert not fsdp or arguments.fsdp_version == 2


def test_launch_lines_name_files_that_exist():
    texts = [
        path.read_text()
        for path in (TRAINING / "README.md", *RECIPES.values(), *COMPARISONS.values(), *LAUNCHES.values())
    ]
    named = {word for text in texts for word in text.split() if word.startswith(("training/", "evaluation/"))}
    assert named
    assert [word for word in named if not (TRAINING.parent / word).is_file()] == []
    for command, files in (("train", RECIPES), ("compare", COMPARISONS)):
        recipes = {name for text in texts for name in re.findall(rf"cyclip {command} .*?--config (\w+)", text)}
        assert recipes and recipes - {"RECIPE"} <= set(files)
    launches = {name for text in texts for name in re.findall(r"--accelerate_config (\w+)", text)}
    assert launches == set(LAUNCHES)
