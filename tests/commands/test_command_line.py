"""`cyclip`: one name for every program, that answers before it imports."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_cyclip.__main__ import COMMANDS, HELP, main, split_launch_options
from modeling_cyclip.commands.write_help import help_text


PACKAGE = Path(__file__).parents[2] / "modeling_cyclip"
CYCLIP = Path(sys.executable).with_name("cyclip")
# What a clone has beside the package, by command.
SCRIPTS = {
    "train": "training/run_cyclip.py",
    "compare": "training/run_comparison.py",
    "evaluate": "evaluation/run_evaluation.py",
    "publish": "model_cards/publish.py",
}


def run(*arguments, cwd=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(CYCLIP), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_help_says_in_ten_lines_what_there_is():
    assert len(HELP.splitlines()) <= 10
    assert all(f"\n  {command} " in HELP for command in COMMANDS)
    for arguments in ([], ["--help"], ["-h"]):
        assert run(*arguments).stdout == HELP


@pytest.mark.parametrize("command", COMMANDS)
def test_shipped_help_is_what_the_program_says(command, capsys):
    # `python -m modeling_cyclip.commands.write_help` writes it anew.
    assert main([command, "--help"]) == 0
    # Versions of Python divide lines and spell options a little differently.
    assert capsys.readouterr().out.split() == help_text(command).split()


def test_help_ends_quietly_when_its_reader_has_read_enough():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as pipe:
        said = subprocess.run(
            [sys.executable, PACKAGE / "__main__.py", "train", "--help"], stdout=pipe, stderr=subprocess.PIPE
        )
    assert said.returncode == 0 and said.stderr == b""


def test_help_of_prepare_has_the_options_of_both_its_parts(capsys):
    assert main(["prepare", "urls", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--max_aspect_ratio" in said and "--image_dir" in said


@pytest.mark.parametrize(
    "script, arguments",
    [("modeling_cyclip/__main__.py", []), ("modeling_cyclip/__main__.py", ["train"]), *((script, []) for script in SCRIPTS.values())],
)  # fmt: skip
def test_help_imports_nothing_heavy(script, arguments):
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {[*arguments, '--help']}\n"
        "try:\n"
        f"    runpy.run_path({str(PACKAGE.parent / script)!r}, run_name='__main__')\n"
        "except SystemExit:\n"
        "    pass\n"
        "assert not {'torch', 'transformers', 'modeling_cyclip'} & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.startswith("usage: cyclip ")


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_run_their_command_and_name_themselves_in_errors(command, monkeypatch, capsys):
    script = PACKAGE.parent / SCRIPTS[command]

    def run_with(argument):
        monkeypatch.setattr(sys, "argv", [str(script), argument])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        return ended.value.code, capsys.readouterr()

    status, said = run_with("-h")
    assert status == 0 and said.out == (PACKAGE / f"commands/help/{command}.txt").read_text(encoding="utf-8")
    status, said = run_with("--wrong")
    assert status == 2 and f"{script.name}: error: " in said.err


def test_an_unknown_command_is_named_with_those_that_there_are():
    result = run("trian")
    assert result.returncode == 2
    assert "no command trian; there are train, evaluate, compare" in result.stderr


def test_launch_options_are_told_apart_from_the_program_s():
    given = ["--config", "cifar10", "--num_processes", "8", "--accelerate_config=one_node", "--seed", "1"]
    options, own = split_launch_options(given)
    assert options == {"num_processes": "8", "accelerate_config": "one_node"}
    assert own == ["--config", "cifar10", "--seed", "1"]


def test_launch_options_start_accelerate_s_launcher(monkeypatch):
    started = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", started.append)
    monkeypatch.setattr("signal.signal", lambda *handler: None)  # the handlers would stay with the tests
    assert main(["train", "--accelerate_config", "one_node", "--num_processes", "4", "--config", "eight_gpus"]) == 0
    (told,) = started
    assert Path(told.config_file).name == "one_node.yaml" and told.num_processes == 4
    assert told.module and told.training_script == "modeling_cyclip.commands.train"
    assert told.training_script_args == ["--config", "eight_gpus"]


def test_an_unknown_accelerate_configuration_is_named_with_those_that_there_are(capsys):
    assert main(["train", "--accelerate_config", "one_nod", "--config", "cifar10"]) == 2
    assert (
        "no accelerate configuration one_nod: give a file, or one of fsdp, one_gpu, one_node"
        in capsys.readouterr().err
    )


def test_recipes_go_by_name_and_a_wrong_one_is_named_with_those_that_there_are(tmp_path):
    result = run("train", "--config", "cifar100", cwd=tmp_path)
    assert result.returncode == 2
    assert "no recipe cifar100: give a file, or one of cc3m_rn50," in result.stderr.splitlines()[-1]


def test_only_the_package_can_be_imported_from_elsewhere(tmp_path):
    for name in ("training", "evaluation", "model_cards", "tests", "benchmarks", "docs"):
        result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, text=True)
        assert f"No module named '{name}'" in result.stderr
