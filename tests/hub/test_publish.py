"""publish.py as its user runs it, against a Hub on loopback that fails when told to."""

import json
import os
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from unittest.mock import Mock

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file

from modeling_cyclip.hub.publish import PublishError, patiently, saying_how_to_go_on
from tests.hub.conftest import write_results
from tests.hub.loopback import Fault


def card_of(hub, repo_id="tester/vit") -> ModelCard:
    return ModelCard(hub.files(repo_id)["README.md"].decode())


def new_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_dry_run_shows_and_changes_nothing(hub, publish, run_folder, results):
    done = publish(run_folder, "tester/vit", "--results", results, "--dry_run")
    assert done.returncode == 0, done.stderr
    for part in ("new", "model.safetensors", "README.md", "plots/training_curve.png", ".eval_results/clip-benchmark--wds_tiny.yaml",
                 "plots/confusion.png", "left out: checkpoint-6/, embeddings/, optimizer.pt, training_args.bin"):  # fmt: skip
        assert part in done.stdout
    assert hub.repos == {} and {method for method, _ in hub.requests} == {"GET"}
    assert not (run_folder / "README.md").exists()


def test_publishes_all_at_once_and_then_only_what_is_missing(hub, publish, run_folder, results):
    done = publish(run_folder, "tester/vit", "--results", results, "--private")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["tester/vit"]
    assert repo.is_private and repo.log == ["initial commit", "Publish the model"]
    files = hub.files("tester/vit")
    assert files["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()
    assert not [
        path for path in files if path.endswith((".bin", ".pt")) or path.startswith(("checkpoint", "embedd", ".card"))
    ]
    (entry,) = yaml.safe_load(files[".eval_results/clip-benchmark--wds_tiny.yaml"])
    assert entry["dataset"]["id"] == "clip-benchmark/wds_tiny" and entry["value"] == 0.625
    assert card_of(hub).text == ModelCard.load(run_folder / "README.md").text

    hub.requests.clear()
    done = publish(run_folder, "tester/vit", "--results", results)
    assert done.returncode == 0 and len(repo.log) == 2
    assert not [path for method, path in hub.requests if method == "PUT" or "/commit/" in path]

    (run_folder / "added_tokens.json").write_text("{}")
    hub.requests.clear()
    done = publish(run_folder, "tester/vit", "--dry_run")
    assert "is there" in done.stdout and done.stdout.count(" new ") == 1
    assert publish(run_folder, "tester/vit").returncode == 0
    assert "added_tokens.json" in hub.files("tester/vit")


def test_later_results_go_into_the_metadata_and_the_text_stays(hub, publish, run_folder, results, tmp_path):
    publish(run_folder, "tester/vit", "--results", results)
    published = card_of(hub)
    published.text += "\nWords that somebody added in the browser.\n"
    published.data.language = "en"
    hub.edit("tester/vit", "README.md", str(published).encode())

    later = write_results(tmp_path / "later" / "results.json", "tester/vit", 0.75)
    other = write_results(
        tmp_path / "other" / "results.json", str(run_folder), 0.25, data="clip-benchmark/wds_other [test]"
    )
    split = write_results(
        tmp_path / "split" / "results.json", str(run_folder), 0.125, data="clip-benchmark/wds_other [validation]"
    )
    assert publish(run_folder, "tester/vit", "--results", split).returncode == 0
    done = publish(run_folder, "tester/vit", "--results", later, other)
    assert done.returncode == 0, done.stderr
    card = card_of(hub)
    assert card.text == published.text and card.data.language == "en" and card.data.license == "mit"
    values = {
        (result.dataset_name, result.metric_type): result.metric_value
        for result in card.data.eval_results
        if result.dataset_split == "test"
    }
    assert values == {("wds_tiny", "accuracy"): 0.75, ("wds_other", "accuracy"): 0.25}
    files = hub.files("tester/vit")
    assert yaml.safe_load(files[".eval_results/clip-benchmark--wds_tiny.yaml"])[0]["value"] == 0.75
    entries = yaml.safe_load(files[".eval_results/clip-benchmark--wds_other.yaml"])
    assert [entry["value"] for entry in entries] == [0.125, 0.25]
    held = [json.loads(files[path])["results"]["tester/vit"] for path in files if path.endswith("/results.json")]
    assert sorted(table["zero_shot"]["top1"]["value"] for table in held) == [0.125, 0.25, 0.625, 0.75]

    # An edit in the folder is meant for publishing; results stay.
    path = run_folder / "README.md"
    path.write_text(path.read_text().replace("## Intended use", "## What it is for"))
    assert publish(run_folder, "tester/vit").returncode == 0
    assert "## What it is for" in card_of(hub).text and len(card_of(hub).data.eval_results) == 3


def test_new_weights_do_not_keep_the_old_ones_results(hub, publish, run_folder, results):
    publish(run_folder, "tester/vit", "--results", results)
    hub.edit("tester/vit", "model-00001-of-00002.safetensors", b"of an older, larger model")
    hub.edit("tester/vit", "notes.md", b"somebody's")
    new_weights(run_folder)
    assert publish(run_folder, "tester/vit").returncode == 0
    files = hub.files("tester/vit")
    assert card_of(hub).data.get("eval_results") is None and "62.50" not in card_of(hub).text
    assert not [path for path in files if path.startswith((".eval_results/", "evaluation/", "model-0"))]
    assert files["notes.md"] == b"somebody's"


def test_publishes_a_comparison_without_names_of_local_folders(hub, publish, run_folder, comparison):
    assert publish(run_folder, "tester/vit", "--comparison", comparison).returncode == 0
    files = hub.files("tester/vit")
    assert "colours, zero_shot top1" in files["README.md"].decode()
    found = json.loads(files["comparison/results.json"])
    assert found["results"]["colours"]["zero_shot"]["top1"]["CyCLIP"]["difference"]["verdict"] == "lower"
    assert "/home/me" not in json.dumps(found)


def test_revision(hub, publish, run_folder):
    done = publish(run_folder, "tester/vit", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.files("tester/vit", "v2") and list(hub.files("tester/vit")) == [".gitattributes"]


def test_an_adapter_is_told_to_be_merged(publish, run_folder):
    (run_folder / "adapter_config.json").write_text("{}")
    done = publish(run_folder, "tester/vit", "--dry_run")
    assert done.returncode != 0 and "--merge_lora" in done.stderr


def test_weights_that_are_cut_off_are_refused(hub, publish, run_folder):
    path = run_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    done = publish(run_folder, "tester/vit")
    assert done.returncode != 0 and "is cut off" in done.stderr and hub.repos == {}


class Poison:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_pickles_are_neither_published_nor_run(hub, publish, run_folder, tmp_path):
    for name in ("training_args.bin", "pytorch_model.bin"):
        torch.save({"weights": Poison(tmp_path / "was_run")}, run_folder / name)
    assert publish(run_folder, "tester/vit").returncode == 0
    assert not [path for path in hub.files("tester/vit") if path.endswith(".bin")]
    (run_folder / "model.safetensors").unlink()
    done = publish(run_folder, "tester/pickled")
    assert done.returncode != 0 and "weights in safetensors" in done.stderr and "Traceback" not in done.stderr
    assert "tester/pickled" not in hub.repos and not (tmp_path / "was_run").exists()


# Faults


@pytest.mark.parametrize("kind", ["error", "drop"])
def test_failing_upload_is_tried_again(hub, publish, run_folder, kind):
    hub.faults = [Fault("PUT", "/lfs/", kind)]
    done = publish(run_folder, "tester/vit")
    assert done.returncode == 0 and "Retrying" in done.stderr, done.stderr
    assert hub.files("tester/vit")["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["error", "drop", "deaf"])
def test_failing_commit_publishes_nothing_or_all(hub, publish, run_folder, kind):
    hub.faults = [Fault("POST", "/commit/", kind)]
    done = publish(run_folder, "tester/vit")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "run the same command again" in done.stderr
    if kind == "deaf":  # the answer was lost, not the commit
        assert "model.safetensors" in hub.files("tester/vit")
    else:
        assert list(hub.files("tester/vit")) == [".gitattributes"]
    hub.requests.clear()
    done = publish(run_folder, "tester/vit")
    assert done.returncode == 0 and hub.repos["tester/vit"].log == ["initial commit", "Publish the model"]
    assert not [path for method, path in hub.requests if method == "PUT"]


@pytest.mark.parametrize("kind", ["busy", "limited", "page"])
@pytest.mark.parametrize("path", ["/repos/create", "/commit/"])
def test_a_busy_hub_is_asked_again(hub, publish, run_folder, path, kind):
    hub.faults = [Fault("POST", path, kind)]
    done = publish(run_folder, "tester/vit")
    assert done.returncode == 0 and "Retrying in 1 seconds (1 of 4)" in done.stderr, done.stderr
    assert hub.repos["tester/vit"].log == ["initial commit", "Publish the model"]


def refusal(status: int, **headers) -> HfHubHTTPError:
    return HfHubHTTPError("refused", response=Mock(status_code=status, headers=headers))


@pytest.mark.parametrize(
    "told, waits",
    [("7", [7]), (None, [1, 2, 4, 8]), ("soon", [1, 2, 4, 8]), ("a date", [60]), ("3600", [])],
)
def test_waits_as_long_as_the_hub_says(monkeypatch, told, waits):
    waited = []
    monkeypatch.setattr("modeling_cyclip.hub.publish.time.sleep", waited.append)
    if told == "a date":
        told = format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)
    headers = {} if told is None else {"Retry-After": told}
    ask = Mock(side_effect=[*[refusal(503, **headers) for _ in waits or [1]], "done"])
    if waits:
        assert patiently(ask) == "done"
    else:  # a wait that is too long to sit through
        with pytest.raises(HfHubHTTPError):
            patiently(ask)
    assert waited == pytest.approx(waits, rel=0.2)


def test_gives_up_on_a_hub_that_stays_busy_and_does_not_repeat_a_refusal(monkeypatch):
    monkeypatch.setattr("modeling_cyclip.hub.publish.time.sleep", lambda seconds: None)
    for error, times in ((refusal(429), 5), (refusal(400), 1), (refusal(500), 1)):
        ask = Mock(side_effect=error)
        with pytest.raises(HfHubHTTPError):
            patiently(ask)
        assert ask.call_count == times


@pytest.mark.parametrize(
    "error, words",
    [
        (refusal(503, **{"Retry-After": "3600"}), "In 3600 seconds, run the same command again"),
        (refusal(429), "Later, run the same command again"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "a page came in place of the Hub's answer"),
    ],
)
def test_what_passes_by_itself_is_said_to(tmp_path, error, words):
    with pytest.raises(PublishError, match=words) as raised, saying_how_to_go_on(tmp_path, "tester/vit"):
        raise error
    assert "stays until" not in str(raised.value)


@pytest.mark.parametrize(
    "repo_id, token", [("tester/vit", "hf_wrong"), ("tester/vit", None), ("somebody/vit", "hf_loopback")]
)
def test_wrong_token(hub, publish, run_folder, repo_id, token):
    done = publish(run_folder, repo_id, token=token)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"does not let this token write to {repo_id}" in done.stderr and "hf auth login" in done.stderr
    assert hub.repos == {}


@pytest.mark.parametrize("error", [ValueError("Invalid metadata in README.md."), 400, 404, 500, OSError("no network")])
def test_only_what_may_pass_is_to_be_tried_again(tmp_path, error):
    is_passing = error == 500 or isinstance(error, OSError)
    if isinstance(error, int):
        error = refusal(error)
    with pytest.raises(PublishError, match="was not published") as raised, saying_how_to_go_on(tmp_path, "tester/vit"):
        raise error
    assert ("run the same command again" in str(raised.value)) == is_passing


def test_somebody_else_commits_meanwhile(hub, publish, run_folder):
    publish(run_folder, "tester/vit")
    new_weights(run_folder)
    before = hub.lfs_batch

    def interrupted(objects):
        hub.edit("tester/vit", "notes.md", b"in between")
        return before(objects)

    hub.lfs_batch = interrupted
    done = publish(run_folder, "tester/vit")
    assert done.returncode != 0 and "Somebody else has changed tester/vit meanwhile" in done.stderr
    assert hub.repos["tester/vit"].log[-1] == "Edit notes.md"
