"""A training that goes on is the one that its checkpoint is of."""

import json

import pytest
from transformers import AutoTokenizer

from modeling_cyclip import checkpoints
from modeling_cyclip.commands.train import main
from modeling_cyclip.resume import compare_runs, find_checkpoint
from tests.invariant.trajectory import SCRIPT, command, write_pairs


@pytest.fixture
def make_longer_trainer(make_trainer):
    def make(**options):
        return make_trainer(**{"max_steps": 6, "save_steps": 3, "logging_steps": 2, **options})

    return make


def run(train_file, output_dir, *arguments):
    whole = command(train_file, output_dir, 1, ["--per_device_train_batch_size", "64", *arguments])
    main(whole[whole.index(str(SCRIPT)) + 1 :])


def test_a_table_that_has_grown_keeps_the_tokenizer_and_is_named(tmp_path, caplog):
    train_file, out = write_pairs(tmp_path), tmp_path / "out"
    run(train_file, out, "--max_steps", "2", "--eval_strategy", "no")
    vocabulary = AutoTokenizer.from_pretrained(out / "checkpoint-2").get_vocab()
    rows = train_file.read_text().splitlines()
    new = [{**json.loads(row), "captions": [f"zebra crossing {i}"]} for i, row in enumerate(rows[:32])]
    train_file.write_text("\n".join([*rows, *map(json.dumps, new)]) + "\n")

    run(train_file, out, "--max_steps", "4", "--eval_strategy", "no", "--resume_from_checkpoint")

    assert AutoTokenizer.from_pretrained(out).get_vocab() == vocabulary
    (message,) = [record.getMessage() for record in caplog.records if "was another" in record.getMessage()]
    assert "training_pairs was 160 and is 192 (192 holds)" in message and "captions was " in message
    assert "max_steps was 2 and is 4 (4 holds)" in message


def test_other_arguments_are_named_with_what_holds(make_longer_trainer, caplog):
    make_longer_trainer(learning_rate=1e-3, lr_scheduler_type="constant").train()
    caplog.clear()
    resumed = make_longer_trainer(learning_rate=5e-3, lr_scheduler_type="constant", max_steps=8, weight_decay=0.5)
    resumed.train(resume_from_checkpoint=True)
    (message,) = [record.getMessage() for record in caplog.records if "was another" in record.getMessage()]
    assert message.endswith(
        "checkpoint-6 is of was another: learning_rate was 0.001 and is 0.005 (0.001 holds), max_steps was 6 and is 8 (8 "
        "holds), weight_decay was 0.1 and is 0.5 (0.1 holds)."
    )
    assert resumed.state.log_history[-2]["learning_rate"] == 1e-3
    assert {group["weight_decay"] for group in resumed.optimizer.param_groups} == {0.1, 0.0}


def test_a_run_before_the_terms_began_late_is_another(make_longer_trainer, tmp_path, caplog):
    trainer = make_longer_trainer()
    trainer.model.config.cyclic_max_gradient_share = 1.0
    now = trainer._make_run_record()
    compare_as_checkpoint(now, now, tmp_path)
    assert caplog.text == ""
    later = {"cyclic_start_ratio", "patch_dropout"}
    before = {**now, "training": {name: value for name, value in now["training"].items() if name not in later}}
    del before["cyclic_max_gradient_share"]
    compare_as_checkpoint(before, now, tmp_path)
    assert (
        "cyclic_max_gradient_share was None and is 1.0 (1.0 holds), cyclic_start_ratio was 0.0 and is 0.5 (0.5 holds)."
        in caplog.text
    )


def compare_as_checkpoint(before, now, folder):
    (folder / "run.json").write_text(json.dumps(before))
    compare_runs(str(folder), now)


def test_the_same_command_says_nothing(make_longer_trainer, caplog):
    make_longer_trainer().train()
    make_longer_trainer(gradient_cache_chunk_size=4, dataloader_num_workers=1).train(resume_from_checkpoint=True)
    assert "was another" not in caplog.text


def test_a_run_that_has_gone_on_from_an_older_checkpoint_has_its_own_as_the_newest(make_longer_trainer, tmp_path):
    make_longer_trainer().train()
    make_longer_trainer(max_steps=4, save_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert find_checkpoint("true", tmp_path) == str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("option", [{"vision_learning_rate": 1e-4}, {"text_learning_rate": 1e-4}])
def test_arguments_that_the_state_does_not_fit_are_refused(make_longer_trainer, option):
    make_longer_trainer().train()
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} was None, and here it is 0.0001: its state does not fit"):
        make_longer_trainer(**option).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("content", ["no json", "[1]", '{"model": "a string of another program"}', "{}"])
def test_a_record_of_another_program_is_passed_over(make_longer_trainer, tmp_path, content):
    make_longer_trainer().train()
    checkpoint = tmp_path / "checkpoint-6"
    (checkpoint / "complete").unlink()  # nor is it a checkpoint of ours
    (checkpoint / "run.json").write_text(content)
    assert make_longer_trainer(max_steps=7).train(resume_from_checkpoint=str(checkpoint)).global_step == 7


def test_nothing_is_left_to_train_and_the_totals_stay(make_longer_trainer):
    ended = make_longer_trainer().train().metrics
    step, _, metrics = make_longer_trainer().train(resume_from_checkpoint=True)
    assert step == 6
    assert metrics["train_loss"] == pytest.approx(ended["train_loss"], rel=1e-6)
    assert metrics["train_runtime"] >= ended["train_runtime"] / 2


@pytest.mark.parametrize("meant", [None, False, "false", "False"])
def test_no_checkpoint_is_meant(tmp_path, meant):
    assert find_checkpoint(meant, tmp_path) is None


@pytest.mark.parametrize("resume", [True, "checkpoint-3"])
def test_a_checkpoint_of_weights_alone_is_no_training_to_go_on_from(make_longer_trainer, tmp_path, resume):
    make_longer_trainer(save_only_model=True).train()
    with pytest.raises(ValueError, match="holds weights but no state of the optimizer"):
        make_longer_trainer().train(resume_from_checkpoint=resume if resume is True else str(tmp_path / resume))


def test_logs_and_totals_of_a_resumed_training_are_those_of_one_without_a_break(make_longer_trainer, tmp_path):
    def numbers(trainer):
        names = ("step", "loss", "contrastive_loss", "grad_norm", "train_loss")
        return [{name: log[name] for name in names if name in log} for log in trainer.state.log_history]

    weights = {name: tensor.clone() for name, tensor in make_longer_trainer().model.state_dict().items()}
    whole = make_longer_trainer()
    whole.train()
    resumed = make_longer_trainer()
    resumed.model.load_state_dict(weights)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    # The checkpoint at step 3 ends a window of the log.
    assert [log["step"] for log in whole.state.log_history] == [2, 3, 4, 6, 6]
    for actual, expected in zip(numbers(resumed), numbers(whole), strict=True):
        assert actual == pytest.approx(expected, rel=1e-6)
    *windows, end = resumed.state.log_history
    seconds = [log["train_seconds"] for log in windows]
    assert seconds == sorted(seconds) and end["train_runtime"] >= seconds[-1]
    assert end["train_samples_per_second"] == pytest.approx(6 * 8 / end["train_runtime"], rel=0.01)
    assert end["train_steps_per_second"] == pytest.approx(6 / end["train_runtime"], rel=0.01)


def test_a_checkpoint_is_read_from_end_to_end_once(make_longer_trainer, tmp_path, monkeypatch):
    make_longer_trainer().train()
    read = []
    damage = checkpoints._damage
    monkeypatch.setattr(checkpoints, "_damage", lambda path: read.append(path.name) or damage(path))
    # As the command does, which needs the checkpoint before it has a Trainer.
    found = find_checkpoint(True, tmp_path)
    make_longer_trainer(max_steps=7).train(resume_from_checkpoint=found)
    assert read == ["checkpoint-6"]
