"""What run_evaluation.py can be told."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Which data, and which of its columns."""

    dataset: str = field(
        metadata={"help": "A name in benchmarks.yaml, a folder or a Hub dataset (see evaluation/README.md)."}
    )
    split: str | None = field(default=None, metadata={"help": "Split that is measured (default: test)."})
    train_split: str | None = field(
        default=None, metadata={"help": "Split of reference images for consistency and linear_probe."}
    )
    shift_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Datasets that are natural distribution shifts of this one."}
    )
    shift_splits: list[str] = field(
        default_factory=list, metadata={"help": "Splits of the same dataset that are shifts of `split`."}
    )
    class_splits: list[str] = field(
        default_factory=list,
        metadata={"help": "Further splits whose labels are among the classes, with a string label column."},
    )
    image_column: str | None = field(
        default=None,
        metadata={"help": "Images, or paths relative to the dataset's folder (default: the only image column)."},
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "Class labels, or strings whose distinct values are the classes (default: label or cls)."},
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Captions, lists or one a line (default: captions, caption or txt)."}
    )
    coarse_column: str | None = field(default=None, metadata={"help": "Superclasses, for fine_coarse."})
    exclude: str | None = field(
        default=None, metadata={"help": "Rows to leave out: column=value,value, such as group=flags,symbols."}
    )
    templates: str | None = field(
        default=None, metadata={"help": "File of prompt templates, one a line, with {} where the class name goes."}
    )


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model_name_or_path: str = field(metadata={"help": "CLIP checkpoint, ours or not: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder of results.json, results.md, plots and embeddings."})
    tasks: list[str] = field(
        default_factory=lambda: ["zero_shot"],
        metadata={"help": "Protocols to run, or `all` for those that the data allow."},
    )
    compare_to: str | None = field(
        default=None, metadata={"help": "Second checkpoint: its figures and the paired differences are added."}
    )
    center: bool = field(
        default=False, metadata={"help": "Every protocol also with the mean of each modality removed."}
    )
    baseline_points: str | None = field(
        default=None,
        metadata={"help": "csv of accuracies in percent (this set, shifted set) to fit the line of robustness to."},
    )
    plots: bool = field(default=False, metadata={"help": "Draw plots as PNG and SVG."})
    batch_size: int = field(default=64, metadata={"help": "Images at a time and process."})
    num_workers: int = field(default=0, metadata={"help": "Processes that open images."})
    dtype: str = field(default="fp32", metadata={"help": "Precision of the model: fp32 or bf16."})
    seed: int = field(default=0, metadata={"help": "Seed of resampling, k-means, the linear probe and samples."})
