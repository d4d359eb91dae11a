"""Command line over recipe over defaults."""

import pytest

from modeling_cyclip.arguments import parse_with_config
from modeling_cyclip.build_model import ModelArguments
from modeling_cyclip.commands.train import parse_arguments
from modeling_cyclip.commands.train_checks import check_evaluation
from modeling_cyclip.comparison.runs import ComparisonArguments
from modeling_cyclip.data.captions import DataArguments


def test_command_line_overrides_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model_size: nano\ntrain_file: pairs.csv\nlearning_rate: 3e-4\nnum_train_epochs: 7\n"
        "caption_templates: ['a {}', 'the {}']\n"
    )
    model_args, data_args, training_args = parse_arguments(
        ["--config", str(tmp_path / "recipe.yaml"), "--num_train_epochs", "2", "--use_cpu"]
    )
    assert (model_args.model_size, data_args.train_file) == ("nano", "pairs.csv")
    assert (training_args.learning_rate, training_args.num_train_epochs) == (3e-4, 2)
    assert data_args.caption_templates == ["a {}", "the {}"]
    assert training_args.weight_decay == 0.1


@pytest.mark.parametrize(
    "line, argv, resumes_from",
    [
        ("resume_from_checkpoint: true", [], True),
        ("resume_from_checkpoint: 'True'", [], True),
        ("", ["--resume_from_checkpoint"], True),
        ("", ["--resume_from_checkpoint", "true"], True),
        ("", ["--resume_from_checkpoint", "True"], True),
        ("resume_from_checkpoint: true", ["--resume_from_checkpoint", "out/checkpoint-3"], "out/checkpoint-3"),
    ],
)
def test_every_spelling_of_true_resumes_from_the_last_checkpoint(tmp_path, line, argv, resumes_from):
    (tmp_path / "recipe.yaml").write_text(f"model_size: nano\ntrain_file: pairs.csv\nuse_cpu: true\n{line}\n")
    _, _, training_args = parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *argv])
    assert training_args.resume_from_checkpoint == resumes_from


def test_a_single_value_of_a_recipe_is_a_list_where_a_list_is_taken(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "model_size: nano\nuse_cpu: true\ntrain_shards: data/*.tar\nvalidation_shards:\n"
    )
    _, data_args, _ = parse_arguments(["--config", str(tmp_path / "recipe.yaml")])
    assert (data_args.train_shards, data_args.validation_shards) == (["data/*.tar"], None)
    (tmp_path / "compare.yaml").write_text("recipe: r\noutput_dir: o\nevaluations: {a: {dataset: b}}\nseeds: 0\n")
    (args,) = parse_with_config((ComparisonArguments,), ["--config", str(tmp_path / "compare.yaml")], "")
    assert args.seeds == [0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("learning_rat: 1", "do not exist: learning_rat; did you mean learning_rate?"),
        ("max_steps: 2.5", "invalid int value: '2.5'"),
        ("- a list", "argument: value"),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, capsys, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(SystemExit):
        parse_arguments(["--config", str(tmp_path / "recipe.yaml")])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--model_size", "nano", "--train_file", "a.csv", "--learning_rat", "1"], "mean --learning_rate?"),
        (["--model_size", "nano", "--train_fil", "a.csv"], "mean --train_file?"),
        (["--train_file", "a.csv"], "--model_name_or_path"),
        (["--model_size", "nano"], "--dataset_name"),
        (["--model_size", "nano", "--train_file", "a.csv", "--inmodal_cyclic_weight", "-1"], "inmodal_cyclic_weight"),
        (["--model_size", "nano", "--train_file", "a.csv", "--learning_rate", "-1"], "learning_rate"),
        (["--model_size", "nano", "--train_file", "a.csv", "--per_device_train_batch_size", "0"], "at least 1"),
        (["--model_size", "nano", "--train_file", "a.csv", "--synonyms", "b.txt"], "--inmodal_contrastive"),
        (["--model_size", "nano", "--train_file", "a.csv", "--gradient_accumulation_steps", "2"], "gradient_cache"),
    ],
)
def test_wrong_command_lines_end_with_one_clear_line(capsys, argv, message):
    with pytest.raises((SystemExit, ValueError)) as error:
        parse_arguments(argv)
    assert message in capsys.readouterr().err + str(error.value)


def test_evaluations_without_data_are_refused():
    options = ["--model_size", "nano", "--train_file", "a.csv", "--eval_strategy", "epoch", "--use_cpu"]
    with pytest.raises(ValueError, match="--validation_file"):
        check_evaluation(*parse_arguments(options)[1:])
    check_evaluation(*parse_arguments([*options, "--eval_zero_shot", "cifar10"])[1:])


def test_sources_of_model_and_data_exclude_each_other():
    with pytest.raises(ValueError, match="exactly one"):
        ModelArguments(model_size="nano", config_name="config.json")
    with pytest.raises(ValueError, match="--image_size"):
        ModelArguments(config_name="config.json", image_size=32)
    with pytest.raises(ValueError, match="nothing to train"):
        ModelArguments(model_size="nano", freeze_vision=True, freeze_text=True)
    with pytest.raises(ValueError, match="--validation_split"):
        DataArguments(dataset_name="a", validation_file=["b.csv"], validation_split="b")
    with pytest.raises(ValueError, match="--validation_file"):
        DataArguments(train_file="a.csv", validation_split="b")


def test_every_argument_has_a_help_text():
    for arguments in (ModelArguments, DataArguments):
        for field in arguments.__dataclass_fields__.values():
            assert field.metadata["help"]


def test_several_files_are_taken_for_training_and_for_evaluation():
    command = "--model_size nano --use_cpu --train_file a.csv b.csv --validation_file c.csv d.csv"
    _, data_args, _ = parse_arguments(command.split())
    assert (data_args.train_file, data_args.validation_file) == (["a.csv", "b.csv"], ["c.csv", "d.csv"])
