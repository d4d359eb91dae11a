"""The trainings of a comparison: checked before they begin, kept, and picked up."""

import ast
import json
import math
import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

import modeling_cyclip
from modeling_cyclip.commands.train import parse_arguments
from modeling_cyclip.comparison.runs import OBJECTIVES, ComparisonArguments, plan_runs, seconds_left, train_runs


@pytest.fixture
def arguments(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_size: nano\ntrain_file: pairs.csv\nuse_cpu: true\n")
    return {"recipe": str(recipe), "output_dir": str(tmp_path / "out"), "evaluations": {"test": {"dataset": "x"}}}


@pytest.fixture
def trainer_script(tmp_path, monkeypatch):
    """
    In place of `cyclip train`: writes what a training leaves behind. It fails where the file `fail` is, in the folders that
    this names, and waits while the file `hold` is there.
    """
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])\n"
        "fail, hold = (pathlib.Path(sys.argv[0]).with_name(name) for name in ('fail', 'hold'))\n"
        "if fail.exists() and fail.read_text() in folder.name: sys.exit('error: no such image')\n"
        "while hold.exists(): time.sleep(0.01)\n"
        "log = {'before_init_mem_gpu': 1, 'init_mem_gpu_alloc_delta': 2, 'train_mem_gpu_alloc_delta': 4,"
        "'train_mem_gpu_peaked_delta': 8}\n"
        "(folder / 'trainer_state.json').write_text(json.dumps({'log_history': [log]}))\n"
        "(folder / 'gpu').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))\n"
        "with open(folder / 'calls', 'a') as file: file.write(' '.join(sys.argv[1:]) + '\\n')\n"
    )
    monkeypatch.setattr("modeling_cyclip.comparison.runs.PROGRAM", (str(script),))
    return script


def calls(runs):
    return [len((run.folder / "calls").read_text().splitlines()) for run in runs]


def test_plans_the_objectives_seed_by_seed(arguments):
    runs = plan_runs(ComparisonArguments(**arguments, seeds=[3, 4]))
    assert [(run.seed, run.arm) for run in runs] == [(seed, arm) for seed in (3, 4) for arm in OBJECTIVES]
    assert len({run.folder for run in runs}) == 6
    # The last is the paper's.
    model_args, _, training_args = parse_arguments(list(runs[-1].argv))
    assert training_args.cyclic_start_ratio == training_args.cyclic_warmup_ratio == 0
    assert model_args.cyclic_max_gradient_share == math.inf


def test_sweep_trains_an_arm_that_fixes_what_is_swept_once(arguments):
    weights = ["inmodal_cyclic_weight", "crossmodal_cyclic_weight"]
    arms = {"CLIP": dict.fromkeys(weights, 0.0), "CyCLIP": {}}
    args = ComparisonArguments(
        **arguments, seeds=[0], arms=arms, sweep_arguments=weights, sweep_values=["0.01", "0.1"]
    )
    assert [run.condition for run in plan_runs(args)] == ["CLIP", "CyCLIP at 0.01", "CyCLIP at 0.1"]


def test_settings_of_mappings_and_without_a_value_reach_the_training(arguments):
    overrides = {"gradient_cache_chunk_size": 4, "lr_scheduler_kwargs": {"num_cycles": 1}}
    arms = {"CLIP": {"gradient_cache_chunk_size": None}}
    (run,) = plan_runs(ComparisonArguments(**arguments, seeds=[0], arms=arms, overrides=overrides))
    _, _, training_args = parse_arguments(list(run.argv))
    assert training_args.gradient_cache_chunk_size is None
    assert training_args.lr_scheduler_kwargs == {"num_cycles": 1}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"arms": {"CLIP": {"no_such": 1}}}, "CLIP, seed 0: .*no_such"),
        ({"arms": {"CLIP": {"inmodal_cyclic_weight": "much"}}}, "inmodal_cyclic_weight"),
        ({"arms": {"CLIP": {"seed": 5}}}, "sets seed itself"),
        ({"overrides": {"output_dir": "x"}}, "sets output_dir itself"),
        ({"arms": {"CLIP": {}, "clip": {}}}, "differ in punctuation only"),
        ({"overrides": {"use_cpu": None}}, "null does not undo use_cpu of the recipe"),
        ({"recipe": "missing.yaml"}, "no recipe missing.yaml"),
        ({"arms": {str(index): {} for index in range(8)}, "center": True}, "8 arms"),
        ({"sweep_arguments": ["learning_rate"], "sweep_values": ["low"]}, "takes numbers: .*low"),
        (
            {"arms": {"A": {"seed_x": 1}}, "sweep_arguments": ["seed_x"], "sweep_values": ["1"]},
            "nothing is swept",
        ),
    ],
)
def test_bad_arguments_are_one_error_before_any_training(arguments, changed, message):
    with pytest.raises(ValueError, match=message):
        plan_runs(ComparisonArguments(**{**arguments, "seeds": [0], **changed}))


def test_trainings_that_ended_are_not_run_again(arguments, trainer_script, capsys):
    args = ComparisonArguments(**arguments, seeds=[0])
    runs = plan_runs(args)
    train_runs(runs[:2], num_parallel=2)
    train_runs(plan_runs(args))
    assert calls(runs) == [1, 1, 1]
    assert "2 of 3 trainings are there already" in capsys.readouterr().out
    assert all(run.cost()["seconds"] > 0 and run.cost()["peak_memory"] > 0 for run in runs)
    assert runs[0].cost()["gpu_memory"] == 15


def test_each_training_is_named_with_its_log_when_it_begins_and_when_it_has_ended(arguments, trainer_script, capsys):
    runs = plan_runs(ComparisonArguments(**arguments, seeds=[0]))[:2]
    train_runs(runs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0::2] == [f"{run.name} begins; its log is {run.folder / 'log.txt'}" for run in runs]
    assert [line.partition(":")[0] for line in lines[1::2]] == [f"{run.name} has ended" for run in runs]
    assert lines[3] == "CyCLIP, seed 0 has ended: 2 of 2 trainings are done"


@pytest.mark.parametrize(
    "running, waiting, at_a_time, expected",
    [([], 3, 1, 30), ([4], 3, 2, 20), ([4, 0], 0, 2, 10), ([25], 0, 2, 0), ([], 3, 2, 20), ([9, 9, 9], 1, 4, 10)],
)
def test_time_left_knows_how_many_train_at_a_time(running, waiting, at_a_time, expected):
    assert seconds_left([8, 12], running, waiting, at_a_time) == expected


def test_trainings_side_by_side_share_the_visible_gpus(arguments, trainer_script, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    runs = plan_runs(ComparisonArguments(**arguments, seeds=[0]))
    train_runs(runs, num_parallel=2)
    assert {(run.folder / "gpu").read_text() for run in runs} == {"4", "6"}


@pytest.mark.parametrize("line", ["push_to_hub: true", "overfit_check: 8"])
def test_a_recipe_that_publishes_or_saves_nothing_is_refused(arguments, tmp_path, line):
    with (tmp_path / "recipe.yaml").open("a") as recipe:
        recipe.write(f"{line}\n")
    with pytest.raises(ValueError, match="neither push_to_hub nor overfit_check"):
        plan_runs(ComparisonArguments(**arguments, seeds=[0]))


def test_a_failed_training_says_why_and_is_run_again(arguments, trainer_script):
    runs = plan_runs(ComparisonArguments(**arguments, seeds=[0]))
    trainer_script.with_name("fail").touch()
    with pytest.raises(ValueError, match=r"(?s)status 1: error: no such image.*log.txt"):
        train_runs(runs)
    trainer_script.with_name("fail").unlink()
    train_runs(runs)
    assert calls(runs) == [1, 1, 1]
    assert runs[0].cost()["seconds"] is None  # its time would be that of the last attempt alone


def test_trainings_of_another_recipe_are_refused(arguments, trainer_script, tmp_path):
    args = ComparisonArguments(**arguments, seeds=[0])
    train_runs(plan_runs(args))
    (tmp_path / "recipe.yaml").write_text("model_size: tiny\ntrain_file: pairs.csv\nuse_cpu: true\n")
    with pytest.raises(ValueError, match="a training with other arguments"):
        plan_runs(args)


def test_the_order_of_arguments_makes_no_other_training(arguments, trainer_script):
    overrides = {"learning_rate": 1e-4, "num_train_epochs": 2}
    train_runs(plan_runs(ComparisonArguments(**arguments, seeds=[0], overrides=overrides)))
    turned = dict(reversed(overrides.items()))
    assert all(run.cost() for run in plan_runs(ComparisonArguments(**arguments, seeds=[0], overrides=turned)))


@pytest.fixture
def held(arguments, trainer_script):
    """A comparison that runs in a process of its own, and its training, which ends when the file `hold` is removed."""
    hold = trainer_script.with_name("hold")
    hold.touch()
    run = plan_runs(ComparisonArguments(**arguments, seeds=[0]))[0]
    comparison = multiprocessing.get_context("fork").Process(target=train_runs, args=([run],))
    comparison.start()
    until(lambda: run.recorded().get("process"))
    yield run, comparison, psutil.Process(run.recorded()["process"]["pid"])
    hold.unlink(missing_ok=True)
    comparison.kill()
    comparison.join()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_two_comparisons_do_not_train_the_same_at_a_time(held):
    run, comparison, training = held
    with pytest.raises(ValueError, match="is being trained already"):
        train_runs([run])
    assert comparison.is_alive() and lives(training)


def test_a_training_that_outlived_its_comparison_is_not_started_twice(held, trainer_script):
    run, comparison, training = held
    comparison.kill()
    comparison.join()
    assert lives(training)
    with pytest.raises(ValueError, match="is being trained already"):
        train_runs([run])
    trainer_script.with_name("hold").unlink()
    until(lambda: not lives(training))
    train_runs([run])
    assert calls([run]) == [2]


def test_an_interrupted_comparison_ends_its_trainings(held, trainer_script):
    run, comparison, training = held
    os.kill(comparison.pid, signal.SIGINT)
    comparison.join()
    assert not lives(training)
    trainer_script.with_name("hold").unlink()
    train_runs([run])
    assert calls([run]) == [1]


def test_a_failed_training_ends_the_others(arguments, trainer_script):
    trainer_script.with_name("hold").touch()
    trainer_script.with_name("fail").write_text("second")
    arms = {arm: {} for arm in ("first", "second", "third")}
    runs = plan_runs(ComparisonArguments(**arguments, arms=arms, seeds=[0]))
    with pytest.raises(ValueError, match="second, seed 0 ended with status 1"):
        train_runs(runs, num_parallel=2)
    assert not psutil.pid_exists(runs[0].recorded()["process"]["pid"])
    assert not runs[2].folder.exists()
    trainer_script.with_name("hold").unlink()
    trainer_script.with_name("fail").unlink()
    train_runs(runs)
    assert calls(runs) == [1, 1, 1]


def test_cost_is_of_all_processes_of_a_training(arguments, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, pathlib, subprocess, sys, time\n"
        "work = 'import time; held = bytes(range(256)) * 800_000; end = time.process_time() + 1\\n'\n"
        "work += 'while time.process_time() < end: pass'\n"
        "subprocess.run([sys.executable, '-c', work], check=True)\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output_dir') + 1])\n"
        "(folder / 'trainer_state.json').write_text(json.dumps({'log_history': [{}]}))\n"
    )
    monkeypatch.setattr("modeling_cyclip.comparison.runs.PROGRAM", (str(script),))
    run = plan_runs(ComparisonArguments(**arguments, seeds=[0]))[0]
    train_runs([run])
    cost = run.cost()
    assert 0.5 < cost["cpu_seconds"] < 3
    assert 2e8 < cost["peak_memory"] < 3e8
    assert cost["seconds"] > 1
    assert cost["gpu_memory"] is None


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # a fresh copy of the module is wanted
def test_cores_are_shared_on_systems_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    environment = runpy.run_module("modeling_cyclip.comparison.runs")["_environment"]
    assert environment(0, 2)["OMP_NUM_THREADS"] == "4"
    assert environment(1, 16)["OMP_NUM_THREADS"] == "1"


def test_no_module_needs_what_windows_lacks():
    for path in Path(modeling_cyclip.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert not {"fcntl", "resource"} & set(names), path
            assert not isinstance(node, ast.Attribute) or node.attr not in ("wait4", "sched_getaffinity"), path


def test_a_launcher_starts_the_trainings(arguments, trainer_script):
    run = plan_runs(ComparisonArguments(**arguments, seeds=[0]))[0]
    train_runs([run], launcher=f"{sys.executable} -X dev")
    assert "--resume_from_checkpoint" in (run.folder / "calls").read_text()
    assert json.loads(run.record_path.read_text())["arguments"]["recipe"]["model_size"] == "nano"
