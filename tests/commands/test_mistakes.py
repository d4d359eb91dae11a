"""
What people type, and the line that they get: each mistake ends with one line that says what to do.

The tables are the specification: what stands behind `cyclip train`, or in its recipe, and the end of what is printed.
"""

import logging
import shlex

import pytest
from datasets.exceptions import DatasetNotFoundError
from transformers.integrations import is_wandb_available
from transformers.utils import is_bitsandbytes_available

from modeling_cyclip.commands import train
from modeling_cyclip.commands.evaluate import main as evaluate
from modeling_cyclip.commands.train import main, parse_arguments
from tests.conftest import COLOURS, coloured_image


MODEL = "--model_size nano --image_size 16 --patch_size 8 --vocab_size 560"
DATA = "--train_file pairs.csv"
TRAINING = "--use_cpu --disable_tqdm true --max_steps 1 --per_device_train_batch_size 8 --output_dir out"
GOOD = f"{MODEL} {DATA} {TRAINING}"

# Other people's names for an argument, and the one that is offered.
NAMES = {
    # of habit
    "--batch_size": "did you mean --per_device_train_batch_size?",
    "--lr": "did you mean --learning_rate?",
    "--epochs": "did you mean --num_train_epochs?",
    "--steps": "did you mean --max_steps?",
    "--data": "did you mean --train_file or --dataset_name?",
    "--dataset": "did you mean --dataset_name?",
    "--model": "did you mean --model_name_or_path or --model_size?",
    "--csv": "did you mean --train_file?",
    "--output": "did you mean --output_dir?",
    "--resume": "did you mean --resume_from_checkpoint?",
    "--tokenizer": "did you mean --tokenizer_name?",
    "--wandb": "did you mean --report_to?",
    "--aug_cfg": "its random crop is --random_resized_crop 0.9 1.0",
    "--device": "a GPU is taken where there is one, and CUDA_VISIBLE_DEVICES says which",
    "--gpus": "`cyclip train --num_processes 2 ...` starts two processes, one a GPU",
    # of open_clip
    "--batch-size": "did you mean --per_device_train_batch_size?",
    "--train-data": "did you mean --train_file or --train_shards or --dataset_name?",
    "--val-data": "did you mean --validation_file or --validation_shards?",
    "--csv-img-key": "did you mean --image_column?",
    "--csv-caption-key": "did you mean --caption_column?",
    "--csv-separator": "did you mean --delimiter?",
    "--wd": "did you mean --weight_decay?",
    "--warmup": "did you mean --warmup_steps?",
    "--workers": "did you mean --dataloader_num_workers?",
    "--precision": "did you mean --bf16 or --fp16?",
    "--pretrained": "did you mean --model_name_or_path?",
    "--imagenet-val": "did you mean --eval_zero_shot?",
    "--accum-freq": "did you mean --gradient_cache_chunk_size?",
    "--grad-checkpointing": "did you mean --gradient_checkpointing?",
    "--lock-image": "did you mean --freeze_vision?",
    "--logs": "did you mean --output_dir?",
    "--local-loss": "the loss is always that of the pairs of all processes; leave it out",
    # of the official code
    "--cylambda1": "did you mean --inmodal_cyclic_weight?",
    "--num_warmup_steps": "did you mean --warmup_steps?",
    "--image_key": "did you mean --image_column?",
    # of transformers before version 5, and of its example
    "--evaluation_strategy": "did you mean --eval_strategy?",
    "--warmup_ratio": "did you mean --warmup_steps?",
    "--no_cuda": "did you mean --use_cpu?",
    "--freeze_vision_model": "did you mean --freeze_vision?",
    # misspelt
    "--learning_rat": "did you mean --learning_rate?",
    "--train_fil": "did you mean --train_file?",
    "--xyzzy": "there is no argument --xyzzy",
}

# Refused before the data is read.
TYPED = {
    f"{GOOD} --learning_rate": "argument --learning_rate/--learning-rate: expected one argument",
    f"{GOOD} --learning_rate abc": "argument --learning_rate/--learning-rate: invalid float value: 'abc'",
    f"{GOOD} --lr_scheduler_kwargs {{a:1}}": "'{a:1}' is no JSON: Expecting property name enclosed in double quotes:",
    f"{GOOD} --lr_scheduler_kwargs '{{\"cycles\": 1}}'": "`lr_scheduler_kwargs` has 'cycles', and `lr_scheduler_type` cosine takes "
    "num_cycles.",
    f"{GOOD} --lr_scheduler_kwargs '{{\"num_cycles\": 1}}' --lr_scheduler_type constant_with_warmup": "`lr_scheduler_kwargs` has "
    "'num_cycles', and `lr_scheduler_type` constant_with_warmup takes none.",
    f"{GOOD} --lr_scheduler_kwargs '{{\"num_cycles\": \"two\"}}'": "`lr_scheduler_kwargs` {'num_cycles': 'two'} do not fit "
    "`lr_scheduler_type` cosine: could not convert string to float: 'two'",
    f"{GOOD} --lr_scheduler_kwargs '{{\"foo\": 1}}' --lr_scheduler_type greedy --validation_file pairs.csv --eval_strategy epoch":
    "`lr_scheduler_kwargs` {'foo': 1} do "
    "not fit `lr_scheduler_type` greedy: GreedyLR.__init__() got an unexpected keyword argument 'foo'",
    f"{GOOD} --lr_scheduler_type cosine_with_min_lr": "`lr_scheduler_kwargs` {} do not fit `lr_scheduler_type` "
    "cosine_with_min_lr: One of min_lr or min_lr_rate should be set",
    "cifar10": "cifar10 stands alone; did you mean --config cifar10?",
    "recipe.yaml": "recipe.yaml stands alone; did you mean --config recipe.yaml?",
    f"{GOOD} learning_rate=1e-3": "learning_rate=1e-3 stands alone; did you mean --learning_rate 1e-3?",
    f"{GOOD} --caption_column a b": "b stands alone: arguments are --ARGUMENT VALUE; --caption_column takes one value",
    "--config cifar100": "there is no recipe cifar100: give a file, or one of cc3m_rn50,",
    DATA: "exactly one of --model_name_or_path (go on from a checkpoint), --vision_model with --text_model (two towers), --config_name or --model_size (from scratch);",
    MODEL: "exactly one of --dataset_name (Hub or folder), --train_file (csv, tsv, json, jsonl, parquet) and --train_shards",
    f"{GOOD} --dataset_name texts": "exactly one of --dataset_name (Hub or folder), --train_file (csv, tsv, json, jsonl, parquet) "
    "and --train_shards (WebDataset). Several together are a table of sources, `--train_file sources.yaml`.",
    f"{GOOD} --per_device_train_batch_size 1": "A batch of one pair has no negatives, so its loss is 0 whatever the model: "
    "set `per_device_train_batch_size` to 2 at least",
    f"{GOOD} --num_train_epochs 0 --max_steps -1": "`num_train_epochs` is 0 and `max_steps` is not set: there is no step to train.",
    f"{GOOD} --max_train_samples 0": "--max_train_samples must be at least 1, got 0.",
    f"{GOOD} --validation_file pairs.csv --max_eval_samples -1": "--max_eval_samples must be at least 1, got -1.",
    f"{GOOD} --dataloader_num_workers -1": "`dataloader_num_workers` must be at least 0, got -1.",
    f"{GOOD} --report_to foo": "--report_to foo is no reporter; installed are ",
    f"{GOOD} --report_to nothing_here tensorboard": "tensorboard stands alone",
    f"{GOOD} --resume_from_checkpoint nowhere": "There is no checkpoint nowhere to go on from.",
    f"{GOOD} --output_dir finished": "finished has a finished model. Choose another --output_dir, or replace it with "
    "--overwrite_output_dir.",
    f"{GOOD} --eval_strategy epoch": "--eval_strategy needs pairs to evaluate on (--validation_file,",
    f"{GOOD} --validation_file pairs.csv --eval_strategy epoch --save_strategy best --metric_for_best_model top1":
    "--metric_for_best_model top1 is measured by no evaluation here; there are loss, contrastive_loss,",
    f"{MODEL} {TRAINING} --dataset_name ./nowhere": "--dataset_name ./nowhere: there is no such folder or file here, and no "
    "name on the Hub has this form (user/name).",
    f"{MODEL} {TRAINING} --dataset_name /data/no/where": "--dataset_name /data/no/where: there is no such folder or file here,",
    f"{MODEL} {TRAINING} --dataset_name texts": "--dataset_name texts: no image, table or archive is in it or in a folder of it.",
    f"{MODEL} {TRAINING} --train_file nowhere.csv": "--train_file nowhere.csv: there is no such file.",
    f"{MODEL} {TRAINING} --train_file texts": "--train_file takes a file, and texts is a folder: take --dataset_name.",
    f"{DATA} {TRAINING} --model_name_or_path ./nowhere": "--model_name_or_path ./nowhere: there is no such folder or file here,",
    f"{DATA} {TRAINING} --model_name_or_path no/where/at": "--model_name_or_path no/where/at: there is no such folder or file",
    f"{DATA} {TRAINING} --config_name ./nowhere.json": "--config_name ./nowhere.json: there is no such folder or file here,",
    f"{GOOD} --tokenizer_name ./nowhere": "--tokenizer_name ./nowhere: there is no such folder or file here,",
    f"{GOOD} --eval_zero_shot ./nowhere": "--eval_zero_shot ./nowhere: there is no such folder or file here,",
}  # fmt: skip

# Lines of a recipe.
WRITTEN = {
    "batch_size: 64": "recipe.yaml has arguments that do not exist: batch_size; did you mean per_device_train_batch_size?",
    "learning_rate: abc": "--config recipe.yaml, learning_rate: invalid float value: 'abc'",
    "learning_rate: [1, 2]": "--config recipe.yaml, learning_rate: takes one value, got [1, 2]",
    "max_steps: true": "--config recipe.yaml, max_steps: invalid int value: 'True'",
    "caption_templates: {a: b}": "--config recipe.yaml, caption_templates: takes a list, got {'a': 'b'}.",
    "caption_templates: [[a], b]": "--config recipe.yaml, caption_templates: takes a list of words, got ['a'] in it.",
    "train_file: {a.csv: 0.7, b.csv: 0.3}": "--config recipe.yaml, train_file: takes a list, got {'a.csv': 0.7, 'b.csv': 0.3}. "
    "Shares stand by themselves: `train_file: [a.csv, b.csv]`, `source_weights: [0.7, 0.3]`.",
    "train_file: [{source: a.csv, weight: 1}]": "--config recipe.yaml, train_file: takes a list of words, got {'source': 'a.csv', "
    "'weight': 1} in it. Rows with a source each stand in a file of their own, `train_file: sources.yaml`.",
    "bf16: maybe": "--config recipe.yaml, bf16: Truthy value expected: got maybe",
    "save_strategy: sometimes": "--config recipe.yaml, save_strategy: invalid choice: 'sometimes'",
    "learning_rate 4": "--config recipe.yaml must hold `argument: value` lines.",
    "a: b: c": "--config recipe.yaml cannot be read: mapping values are not allowed here",
    "learning_rate: -1": "`learning_rate` must be at least 0, got -1.0. (recipe.yaml says learning_rate: -1.0)",
    "model_name_or_path: a/b": "got --model_name_or_path, --model_size. (recipe.yaml says model_name_or_path: a/b; "
    "--model_name_or_path none unsets it)",
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the commands run: pairs, a folder without images, and one with a finished model."""
    monkeypatch.chdir(tmp_path)
    lines = ["image,caption"]
    for level in range(4):
        for colour in COLOURS:
            coloured_image(colour, level).save(f"{colour}{level}.png")
            lines.append(f"{colour}{level}.png,a {colour} square number {level}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    for name, file in (("texts", "notes.doc"), ("finished", "config.json")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
    return tmp_path


@pytest.fixture
def no_data(monkeypatch):
    def fail(*_):
        raise AssertionError("the data is read before the mistake is said")

    monkeypatch.setattr(train, "load_captioned_datasets", fail)


def said(capsys, command: str, program=main) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        program(shlex.split(command))
    if isinstance(end.value.code, str):
        assert end.value.code.startswith("error: ") and "\n" not in end.value.code
        return end.value.code
    assert end.value.code == 2
    usage, line = capsys.readouterr().err.splitlines()[-2:]
    assert usage.startswith("usage: ")
    return line


@pytest.mark.parametrize("name", NAMES)
def test_other_names_lead_to_the_argument(name, capsys, no_data):
    line = said(capsys, f"{GOOD} {name} 1")
    assert f"there is no argument {name}" in line and line.endswith(NAMES[name])


def test_every_program_offers_names_of_its_own(capsys):
    line = said(capsys, "--model finished --dataset texts --output_dir out", program=evaluate)
    assert line.endswith("there is no argument --model; did you mean --model_name_or_path?")


@pytest.mark.parametrize("command", TYPED)
def test_mistakes_on_the_command_line(command, capsys, no_data):
    assert TYPED[command].lower() in said(capsys, command).lower()


@pytest.mark.parametrize("line", WRITTEN)
def test_mistakes_in_a_recipe(line, folder, capsys, no_data):
    (folder / "recipe.yaml").write_text(line + "\n")
    assert WRITTEN[line] in said(capsys, f"--config recipe.yaml {GOOD}".replace("--max_steps 1 ", ""))


HUB = {
    # What `datasets` raises, and what is said.
    "no such set": (
        DatasetNotFoundError("Dataset 'user/set' doesn't exist on the Hub or cannot be accessed."),
        "user/set is no file or folder here, and the Hub says: Dataset 'user/set' doesn't exist on the Hub or cannot be "
        "accessed. Check the name. A private or gated set wants access from its page and a login, `hf auth login`.",
    ),
    "no network": (
        ConnectionError("Couldn't reach 'user/set' on the Hub (LocalEntryNotFoundError)"),
        "user/set is no file or folder here, and the Hub cannot be reached: Couldn't reach 'user/set' on the Hub "
        "(LocalEntryNotFoundError). Where there is a network, `hf download --repo-type dataset user/set --local-dir FOLDER`; then "
        "name the FOLDER here.",
    ),
    "a network that breaks off": (
        KeyError("The read\ntimed out"),
        "cannot be loaded: KeyError: 'The read\\ntimed out'",
    ),
    "a set with a script": (
        RuntimeError("Dataset scripts are no longer supported, but found set.py"),
        "cannot be loaded: RuntimeError: Dataset scripts are no longer supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HUB)
def test_what_the_hub_does_not_give_is_one_line(case, capsys, monkeypatch):
    error, line = HUB[case]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("modeling_cyclip.data.captions.load_dataset", fail)
    assert line in said(capsys, f"{MODEL} {TRAINING} --dataset_name user/set")
    assert line in said(capsys, f"{GOOD} --eval_zero_shot user/set --output_dir other")
    command = "--model_name_or_path user/model --dataset user/set --output_dir out"
    assert line.replace("split train", "split test") in said(capsys, command, program=evaluate)


def test_evaluating_on_a_folder_that_is_not_there(capsys):
    command = "--model_name_or_path user/model --dataset folder/of/tset --output_dir out"
    assert (
        "folder/of/tset: there is no such folder or file here, and no name on the Hub has this form (user/name)."
        in said(capsys, command, program=evaluate)
    )


@pytest.mark.skipif(is_wandb_available(), reason="wandb is installed")
def test_a_reporter_that_is_not_installed(capsys, no_data):
    assert "--report_to wandb needs a package that is not installed: pip install wandb" in said(
        capsys, f"{GOOD} --report_to wandb"
    )


@pytest.mark.skipif(is_bitsandbytes_available(), reason="bitsandbytes is installed")
def test_an_optimizer_that_is_not_installed(capsys):
    assert "install `bitsandbytes`" in said(capsys, f"{GOOD} --optim adamw_bnb_8bit")


def test_publishing_offline_or_without_a_token(capsys, no_data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = said(capsys, f"{GOOD} --push_to_hub")
    assert "--push_to_hub cannot reach the Hub while HF_HUB_OFFLINE is set" in line and "cyclip publish out" in line
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("modeling_cyclip.commands.train_checks.get_token", lambda: None)
    assert "--push_to_hub needs a token: log in with `hf auth login`" in said(capsys, f"{GOOD} --push_to_hub")


def test_a_recipe_means_what_is_written_there(folder):
    (folder / "recipe.yaml").write_text(
        "save_strategy: no\nbf16: off\nrun_name: 2024-05-05\nlearning_rate: 1e-3\nreport_to: [tensorboard]\n"
        "lr_scheduler_kwargs: {num_cycles: 1}\nweight_decay:\ntokenizer_name: none\n"
    )
    model_args, _, args = parse_arguments(shlex.split(f"--config recipe.yaml {GOOD}"))
    assert (args.save_strategy, args.bf16, args.run_name, args.learning_rate) == ("no", False, "2024-05-05", 1e-3)
    assert (args.report_to, args.lr_scheduler_kwargs) == (["tensorboard"], {"num_cycles": 1})
    assert (args.weight_decay, model_args.tokenizer_name) == (0.1, None)


@pytest.mark.parametrize("unset", ["--train_file none", "--train_file=none", "--train-file None"])
def test_the_command_line_unsets_what_a_recipe_says(folder, unset):
    (folder / "recipe.yaml").write_text("train_file: pairs.csv\nmodel_size: nano\ncaption_templates: [a, b]\n")
    command = f"--config recipe.yaml --use_cpu {unset} --caption_templates none --dataset_name texts"
    _, data_args, _ = parse_arguments(shlex.split(command))
    assert (data_args.train_file, data_args.caption_templates) == (None, None)


def test_none_is_a_value_where_an_argument_has_a_default(folder):
    _, data_args, args = parse_arguments(shlex.split(f"{GOOD} --report_to none --train_split none"))
    assert (args.report_to, data_args.train_split) == ([], "none")


def test_a_batch_that_leaves_out_much_of_the_data_is_said(caplog):
    with caplog.at_level(logging.WARNING, "modeling_cyclip"):
        main(shlex.split(GOOD.replace("batch_size 8", "batch_size 10")))
    assert (
        "6 of the 16 training pairs, others each time, sit out every epoch: a batch of 10 pairs leaves them over. "
        "--per_device_train_batch_size 8 leaves 0."
    ) in caplog.text


@pytest.mark.parametrize("length", ["--max_steps 2", "--max_steps -1 --num_train_epochs 1"])
def test_a_warm_up_that_outlasts_the_training_is_said(length, caplog):
    with caplog.at_level(logging.WARNING, "modeling_cyclip"):
        main(shlex.split(f"{GOOD} --warmup_steps 2 {length}"))
    assert (
        "The warm-up has 2 steps (--warmup_steps) and the training 2: the learning rate does not reach --learning_rate before the "
        "end. Set --warmup_steps to fewer, or to a share of the training below 1, such as 0.1."
    ) in caplog.text


@pytest.mark.parametrize("options", ["--warmup_steps 1 --max_steps 2", "--warmup_steps 0.5 --max_steps 2", ""])
def test_a_warm_up_that_ends_is_no_matter(options, caplog):
    with caplog.at_level(logging.WARNING, "modeling_cyclip"):
        main(shlex.split(f"{GOOD} {options}"))
    assert "The warm-up" not in caplog.text
