"""What run_cyclip.py can be told: the model and the data. How to train stands in `CyCLIPTrainingArguments`."""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.utils import is_peft_available

from modeling_cyclip import CyCLIPTrainingArguments
from modeling_cyclip.configuration_cyclip import check_cyclic_terms


@dataclass
class ModelArguments:
    """Which model is trained: a checkpoint, a config.json, or one of the named sizes from scratch."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from, a CyCLIP one or any CLIP: a folder or a Hub id."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "config.json (or its folder, or a Hub id) of a model to train from scratch."}
    )
    model_size: str | None = field(
        default=None,
        metadata={"help": "Named size to train from scratch: nano, tiny, small, base-32, base-16, large-14 or rn50."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the images in pixels, for a named size (default: the size's own)."}
    )
    patch_size: int | None = field(
        default=None, metadata={"help": "Side of a patch in pixels, for a named size (default: the size's own)."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer, a folder or a Hub id. Default: the checkpoint's, or from scratch a CLIP tokenizer trained "
            "on the captions."
        },
    )
    vocab_size: int = field(
        default=49408, metadata={"help": "Largest vocabulary of a tokenizer trained on the captions (at least 514)."}
    )
    inmodal_cyclic_weight: float | None = field(
        default=None, metadata={"help": "Weight of the in-modal term, lambda 1 (default: the checkpoint's, or 0.25)."}
    )
    crossmodal_cyclic_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the cross-modal term, lambda 2 (default: the checkpoint's, or 0.25)."},
    )
    cyclic_reference_batch_size: int | None = field(
        default=None,
        metadata={"help": "Batch the two weights were chosen for; scales them by it over the batch (default: off)."},
    )
    freeze_vision: bool = field(
        default=False, metadata={"help": "Keep the vision tower and its projection as they are."}
    )
    freeze_text: bool = field(default=False, metadata={"help": "Keep the text tower and its projection as they are."})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention by eager, sdpa or flash_attention_2 (default: transformers' choice, sdpa)."},
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train adapters of this rank (LoRA) instead of the checkpoint's weights."}
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "Adapters count alpha / rank times (default: the rank, so once)."}
    )
    lora_towers: list[str] | None = field(
        default=None, metadata={"help": "Towers that get adapters, vision, text or both (default: both)."}
    )
    merge_lora: bool = field(
        default=False,
        metadata={"help": "Save the checkpoint with the adapters added to its weights, not the adapters alone."},
    )
    license: str | None = field(
        default=None,
        metadata={"help": "The Hub's identifier of the weights' licence, for the model card, such as apache-2.0."},
    )

    def __post_init__(self):
        check_cyclic_terms(
            self.inmodal_cyclic_weight or 0, self.crossmodal_cyclic_weight or 0, self.cyclic_reference_batch_size
        )
        given = [name for name in ("model_name_or_path", "config_name", "model_size") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "Say which model to train by exactly one of --model_name_or_path (go on from a checkpoint), --config_name "
                f"or --model_size (from scratch); got {', '.join('--' + name for name in given) or 'none of them'}."
            )
        if self.freeze_vision and self.freeze_text:
            raise ValueError("--freeze_vision and --freeze_text together leave nothing to train.")
        if self.model_size is None and (self.image_size or self.patch_size):
            raise ValueError(
                "--image_size and --patch_size belong to --model_size; a checkpoint or config has its own."
            )
        if self.lora_rank is not None:
            self._check_lora()
        elif self.lora_alpha is not None or self.lora_towers is not None or self.merge_lora:
            raise ValueError("--lora_alpha, --lora_towers and --merge_lora go with --lora_rank.")

    @property
    def saves_adapter(self) -> bool:
        """Whether the output folder gets an adapter, and not a checkpoint."""
        return self.lora_rank is not None and not self.merge_lora

    def _check_lora(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank must be at least 1, got {self.lora_rank}.")
        if self.model_name_or_path is None:
            raise ValueError("--lora_rank tunes a checkpoint: give it with --model_name_or_path.")
        if self.freeze_vision or self.freeze_text:
            raise ValueError("With --lora_rank, --lora_towers says which towers train: leave out --freeze_*.")
        if not is_peft_available():
            raise ValueError('--lora_rank needs peft: pip install -e ".[lora]"')
        self.lora_towers = self.lora_towers or ["vision", "text"]
        if wrong := set(self.lora_towers) - {"vision", "text"}:
            raise ValueError(f"--lora_towers takes vision and text, got {', '.join(sorted(wrong))}.")
        self.freeze_vision, self.freeze_text = (tower not in self.lora_towers for tower in ("vision", "text"))


@dataclass
class DataArguments:
    """Where the image-caption pairs come from."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub dataset, or a folder that `datasets.load_dataset` opens (images included)."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Training split, such as train, or noto+twemoji."})
    validation_split: str | None = field(default=None, metadata={"help": "Split of the same dataset for eval_loss."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "csv, tsv, json, jsonl or parquet file of pairs; image paths are relative to the file."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "File of the same form for eval_loss."})
    train_shards: list[str] | None = field(
        default=None,
        metadata={
            "help": "WebDataset shards on disk, such as 'data/cc3m-*.tar' or 'data/cc3m-{00000..00331}.tar': KEY.jpg with "
            "KEY.txt."
        },
    )
    validation_shards: list[str] | None = field(
        default=None, metadata={"help": "Shards of the same form for eval_loss."}
    )
    delimiter: str | None = field(
        default=None, metadata={"help": "Column delimiter of a csv file (default: comma, tab in .tsv files)."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of images or image paths."})
    caption_column: str = field(
        default="caption",
        metadata={"help": "Column of captions: text, lists of texts (one is drawn each epoch), or class labels."},
    )
    caption_templates: list[str] | None = field(
        default=None,
        metadata={"help": "With a class label column: templates such as 'a photo of a {}.', one is drawn each epoch."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many pairs only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many pairs only."})
    eval_zero_shot: str | None = field(
        default=None,
        metadata={
            "help": "Labelled images (a benchmark's name, a folder or a Hub id) to measure eval_zero_shot_top1 on at every "
            "evaluation; --metric_for_best_model can name it."
        },
    )
    inmodal_contrastive: bool = field(
        default=False,
        metadata={"help": "Add contrastive terms of images, and of captions, with augmented views of them."},
    )
    synonyms: str | None = field(
        default=None,
        metadata={"help": "With --inmodal_contrastive: file of synonyms for captions, a set a line, with commas."},
    )
    overfit_check: int | None = field(
        default=None,
        metadata={
            "help": "Train on the first so many pairs only, say whether the model can memorise them, and save nothing."
        },
    )

    def __post_init__(self):
        if sum(source is not None for source in (self.dataset_name, self.train_file, self.train_shards)) != 1:
            raise ValueError(
                "Say where the pairs come from by exactly one of --dataset_name (Hub or folder), --train_file (csv, tsv, "
                "json, jsonl, parquet) and --train_shards (WebDataset)."
            )
        if self.synonyms is not None and not self.inmodal_contrastive:
            raise ValueError("--synonyms goes with --inmodal_contrastive, which augments captions.")
        if self.overfit_check is not None and self.overfit_check < 2:
            raise ValueError(f"--overfit_check takes at least 2 pairs, got {self.overfit_check}.")
        if self.validation_file and not self.train_file:
            raise ValueError(
                "--validation_file goes with --train_file; take --validation_split with --dataset_name, "
                "--validation_shards with --train_shards."
            )
        if self.validation_split and not self.dataset_name:
            raise ValueError(
                "--validation_split goes with --dataset_name; take --validation_file with --train_file, "
                "--validation_shards with --train_shards."
            )
        if self.validation_shards and not self.train_shards:
            raise ValueError("--validation_shards goes with --train_shards.")
        if self.train_shards and (self.image_column, self.caption_column, self.caption_templates) != (
            "image",
            "caption",
            None,
        ):
            raise ValueError(
                "--image_column, --caption_column and --caption_templates go with tables: in shards the image is KEY.jpg "
                "(jpeg, png, webp), the caption KEY.txt, or the field `caption` of KEY.json."
            )
        if self.overfit_check is not None:
            # The check evaluates nothing.
            self.validation_file = self.validation_split = self.validation_shards = self.eval_zero_shot = None


def check_evaluation(data_args: DataArguments, training_args: CyCLIPTrainingArguments) -> None:
    r"""
    Raises:
        `ValueError`: evaluations are asked for, but nothing to evaluate on.
    """
    sets = data_args.validation_file, data_args.validation_split, data_args.validation_shards, data_args.eval_zero_shot
    if training_args.eval_strategy != "no" and not any(sets):
        raise ValueError(
            "--eval_strategy needs pairs to evaluate on (--validation_file, --validation_split or --validation_shards) or "
            "--eval_zero_shot."
        )


def parse_arguments(
    argv: list[str] | None = None,
) -> tuple[ModelArguments, DataArguments, CyCLIPTrainingArguments]:
    """The arguments of run_cyclip.py."""
    return parse_with_config(
        (ModelArguments, DataArguments, CyCLIPTrainingArguments),
        argv,
        "Train CLIP with cyclic consistency on image-caption pairs.",
    )


def parse_with_config(dataclass_types: tuple[type, ...], argv: list[str] | None, description: str) -> tuple:
    """The arguments of the command line, over those of `--config FILE.yaml`, over the defaults, in dataclasses."""
    argv = sys.argv[1:] if argv is None else argv
    # The usage of all arguments would push what an error says off the screen.
    usage = "%(prog)s [--config FILE.yaml] [--ARGUMENT VALUE ...]    (all arguments: --help)"
    parser = HfArgumentParser(dataclass_types, allow_abbrev=False, description=description, usage=usage)
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", True
            action.type = lambda text: text.lower() == "true" or text
            action.help = "Go on from the last complete checkpoint of --output_dir, or from the one given."
        if action.type is dict:
            action.type = json.loads
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for adding in (parser, config_parser):
        adding.add_argument("--config", help="YAML file of arguments; the command line overrides it.")
    config = config_parser.parse_known_args(argv)[0].config
    if config is not None:
        parser.set_defaults(**_read_config(parser, Path(config)))
        # What the file gives needs no place on the command line.
        for action in parser._actions:
            action.required = action.required and action.default is None
    # First, since what a misspelt argument leaves unset would be complained of instead.
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"there is no argument {unknown[0]}{_did_you_mean(unknown[0], parser._option_string_actions)}")
    try:
        # The last namespace holds --config alone.
        *arguments, _ = parser.parse_args_into_dataclasses(argv)
    except ValueError as error:
        parser.error(str(error))
    return tuple(arguments)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _read_config(parser: argparse.ArgumentParser, path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path} cannot be read: {error}")
    if not isinstance(values, dict):
        parser.error(f"--config {path} must hold `argument: value` lines.")
    takes_list = {action.dest: action.nargs in ("+", "*") for action in parser._actions}
    if unknown := sorted(set(values) - set(takes_list)):
        hint = _did_you_mean(unknown[0], takes_list)
        parser.error(f"--config {path} has arguments that do not exist: {', '.join(unknown)}{hint}")

    def as_told(name: str, value: Any) -> Any:
        if takes_list[name]:
            return value if isinstance(value, list | None) else [value]
        # As on the command line, where the parser checks what a value is.
        return str(value) if isinstance(value, int | float) else value

    return {name: as_told(name, value) for name, value in values.items()}
