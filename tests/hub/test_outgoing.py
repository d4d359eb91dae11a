"""What leaves the machine: nothing of its folders, its name, the token or the data goes to the Hub."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_cyclip import CyCLIPModel, CyCLIPTrainingArguments
from modeling_cyclip.hub.outgoing import outgoing_json, outgoing_log, without_folders
from tests.conftest import COLOURS, coloured_image
from tests.hub.conftest import make_run_folder, write_results
from tests.hub.loopback import TOKEN


HOST = "workstation-of-somebody"

TRAIN = f"""
import socket
socket.gethostname = lambda: {HOST!r}
import sys
from modeling_cyclip.commands.train import main
main(sys.argv[1:])
"""


def all_that_went(hub) -> dict[str, bytes]:
    """Every file of every commit, and every name of one."""
    return {
        f"{repo_id}/{path}": path.encode() + b"\n" + blob.content
        for repo_id, repo in hub.repos.items()
        for files in repo.commits.values()
        for path, blob in files.items()
    }


@pytest.fixture
def home(tmp_path) -> Path:
    """A home folder with pairs of pictures and captions."""
    folder = tmp_path / "home_of_somebody"
    folder.mkdir()
    for colour in COLOURS:
        coloured_image(colour).save(folder / f"{colour}.png")
    rows = [f"{colour}.png,a {colour} picture" for colour in COLOURS]
    (folder / "pairs.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return folder


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
def test_a_training_publishes_nothing_of_the_machine(hub, config, processor, home, strategy):
    torch.manual_seed(0)
    start = make_run_folder(home / "start", CyCLIPModel(config), processor)
    arguments = (
        f"--model_name_or_path {start} --train_file {home}/pairs.csv --validation_file {home}/pairs.csv --use_cpu"
    )
    arguments += f" --output_dir {home}/out --max_steps 4 --save_steps 2 --eval_strategy steps --eval_steps 2"
    arguments += (
        " --load_best_model_at_end true --logging_steps 1 --per_device_train_batch_size 4 --report_to tensorboard"
    )
    arguments += f" --push_to_hub --hub_model_id tester/out --hub_strategy {strategy} --hub_token {TOKEN}"
    arguments += " --hub_always_push true" if strategy == "checkpoint" else ""
    environment = hub.environment(home / ".cache", token=None) | {"HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *arguments.split()], capture_output=True, text=True, cwd=home, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # What is looked for is there, beside what is published.
    state = json.loads((home / "out" / "trainer_state.json").read_text())
    assert str(home) in state["best_model_checkpoint"] and list((home / "out").glob(f"runs/*{HOST}/*{HOST}*"))

    went = all_that_went(hub)
    names = {name.removeprefix("tester/out/") for name in went}
    assert {"model.safetensors", "trainer_state.json", "run.json", "README.md"} <= names
    assert any(name.startswith("runs/") for name in names)
    assert ("last-checkpoint/optimizer.pt" in names) == (strategy == "checkpoint")
    for secret in (str(home), home.name, HOST, TOKEN):
        assert [name for name, content in went.items() if secret.encode() in content] == [], secret
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in (home / "out").rglob("*") if path.is_file())


def test_results_a_comparison_and_a_space_go_without_folders(hub, publish, run_folder, comparison, home, tmp_path):
    results = write_results(
        home / "results" / "results.json", str(run_folder), 0.5, data=f"{home}/private/cifar10 [val]"
    )
    content = json.loads(results.read_text())
    content["command"] = f"cyclip evaluate --model_name_or_path {run_folder} --dataset {home}/private/cifar10"
    results.write_text(json.dumps(content))
    state = json.loads((run_folder / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(run_folder / "checkpoint-6")
    (run_folder / "trainer_state.json").write_text(json.dumps(state))
    run = json.loads((run_folder / "run.json").read_text())
    run["data"]["train_file"] = f"{home}/pairs.csv"
    (run_folder / "run.json").write_text(json.dumps(run))
    found = json.loads((comparison / "results.json").read_text())
    found["notes"] = [f"CLIP began from {run_folder}"]
    (comparison / "results.json").write_text(json.dumps(found))
    done = publish(run_folder, "tester/vit", "--results", results, "--comparison", comparison, "--with_space")
    assert done.returncode == 0, done.stderr
    files = hub.files("tester/vit")
    assert json.loads(files["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-6"
    (measured,) = [json.loads(files[path]) for path in files if path.startswith("evaluation/")]
    assert measured["command"] == "cyclip evaluate --model_name_or_path vit --dataset cifar10"
    assert [name for name, content in all_that_went(hub).items() if str(tmp_path).encode() in content] == []


def test_pictures_of_the_test_set_go_only_where_that_is_asked_for(hub, publish, run_folder, results):
    for name in ("contact_sheet_classes", "pair_similarity", "class_accuracy"):
        (results.parent / "plots" / f"{name}.png").write_bytes(b"\0 a picture")
    arguments = (run_folder, "tester/vit", "--results", results)

    def published() -> set[str]:
        return {path.rpartition("/")[2] for path in hub.files("tester/vit") if path.startswith("evaluation/")}

    said = publish(*arguments, "--dry_run").stdout
    assert "left out without --with_pictures" in said and "contact_sheet_classes.png, pair_similarity.png" in said
    assert publish(*arguments).returncode == 0
    assert published() == {"results.json", "confusion.png", "class_accuracy.png"}
    said = publish(*arguments, "--with_pictures", "--dry_run").stdout
    assert "to everybody: contact_sheet_classes.png, pair_similarity.png" in said
    assert publish(*arguments, "--with_pictures").returncode == 0
    assert published() == {
        "results.json", "confusion.png", "class_accuracy.png", "contact_sheet_classes.png", "pair_similarity.png"
    }  # fmt: skip


@pytest.mark.slow
def test_code_and_plots_of_ones_own_stay(hub, publish, run_folder, resnet_folder):
    for folder in (run_folder, resnet_folder):
        (folder / "secrets.py").write_text("PASSWORD = 'swordfish'")
        (folder / "plots").mkdir(exist_ok=True)
        (folder / "plots" / "contact_sheet_classes.png").write_bytes(b"\0 a picture")
        assert publish(folder, f"tester/{folder.name}").returncode == 0
        files = hub.files(f"tester/{folder.name}")
        assert "secrets.py" not in files and "plots/contact_sheet_classes.png" not in files
    assert "modeling_cyclip_resnet.py" in files


@pytest.mark.parametrize(
    "told, shown",
    [
        ("/home/me/pairs.csv", "pairs.csv"),
        ("~/data/pairs.csv", "pairs.csv"),
        ("C:\\Users\\me\\pairs.csv", "pairs.csv"),
        ("file:///home/me/pairs.csv", "file://pairs.csv"),
        ("/home/me/cifar10 [test]", "cifar10 [test]"),
        ("cyclip evaluate --dataset=/home/me/cifar10 --seed 0", "cyclip evaluate --dataset=cifar10 --seed 0"),
        ({"/home/me/sketches top1": ["/home/me/a", 1]}, {"sketches top1": ["a", 1]}),
        ("https://huggingface.co/user/name", "https://huggingface.co/user/name"),
        ("hf://datasets/user/name@main/data.csv", "hf://datasets/user/name@main/data.csv"),
        ("user/name, black and/or white, 1 / 2, shards/*.tar", "user/name, black and/or white, 1 / 2, shards/*.tar"),
    ],
)
def test_paths_become_names(told, shown):
    assert without_folders(told) == shown


def test_a_file_that_names_no_folder_goes_as_it_is(tmp_path):
    (tmp_path / "run.json").write_text('{"a":   "b"}')
    assert outgoing_json(tmp_path / "run.json") == tmp_path / "run.json"


def test_of_a_log_only_the_scalars_go(tmp_path):
    board = pytest.importorskip("torch.utils.tensorboard")
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with board.SummaryWriter(tmp_path / "runs") as writer:
        writer.add_text("args", '{"output_dir": "/home/me/out"}')
        for step in range(300):
            writer.add_scalar("train/loss", 1.0 / (step + 1), step)
        writer.add_image("photo", torch.zeros(3, 4, 4))
        writer.add_histogram("weights", torch.arange(9.0))
    (path,) = (tmp_path / "runs").iterdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "events.out.tfevents.1").write_bytes(outgoing_log(path))
    read = loader.EventAccumulator(str(tmp_path / "out"), {loader.TENSORS: 0}).Reload()
    assert {kind: tags for kind, tags in read.Tags().items() if tags} == {"scalars": ["train/loss"]}
    events = read.Scalars("train/loss")
    assert [event.step for event in events] == list(range(300)) and events[3].value == 0.25
    whole = outgoing_log(path)
    path.write_bytes(path.read_bytes()[:-3])  # a record cut off: the training was killed
    assert outgoing_log(path) == whole
    path.write_bytes(struct.pack("<Q", 10**6) + b"\0" * 9)
    assert outgoing_log(path) == b""


def test_saved_arguments_hold_no_token(tmp_path):
    args = CyCLIPTrainingArguments(tmp_path / "out", use_cpu=True, hub_token="hf_secret", learning_rate=0.25)
    saved = pickle.dumps(args)
    assert b"hf_secret" not in saved and args.hub_token == "hf_secret"
    assert pickle.loads(saved).learning_rate == 0.25
