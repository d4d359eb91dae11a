"""What `cyclip evaluate` can be told."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg


@dataclass
class DataArguments:
    """Which data, and which of its columns."""

    dataset: str = HfArg(help="A name in benchmarks.yaml, a folder or a Hub dataset (see evaluation/README.md).")
    split: str | None = HfArg(default=None, help="Split that is measured (default: test).")
    train_split: str | None = HfArg(default=None, help="Split of reference images for consistency and linear_probe.")
    cross_validate: int | None = HfArg(
        default=None,
        help="Without a training split: in how many folds consistency and linear_probe take the reference images of a fold "
        "from the other ones.",
    )
    shift_datasets: list[str] = HfArg(
        default_factory=list, help="Datasets that are natural distribution shifts of this one."
    )
    shift_splits: list[str] = HfArg(
        default_factory=list, help="Splits of the same dataset that are shifts of `split`."
    )
    class_splits: list[str] = HfArg(
        default_factory=list, help="Further splits whose labels are among the classes, with a string label column."
    )
    image_column: str | None = HfArg(
        default=None, help="Images, or paths relative to the dataset's folder (default: the only image column)."
    )
    label_column: str | None = HfArg(
        default=None, help="Class labels, or strings whose distinct values are the classes (default: label or cls)."
    )
    caption_column: str | None = HfArg(
        default=None, help="Captions, lists or one a line (default: captions, caption or txt)."
    )
    coarse_column: str | None = HfArg(default=None, help="Superclasses, for fine_coarse.")
    exclude: str | None = HfArg(
        default=None,
        help="Rows to leave out: column=value,value, such as group=flags,symbols. Classes that lose all rows are no "
        "candidates.",
    )
    templates: str | None = HfArg(
        default=None,
        help="File of prompt templates, one a line, with {} where the class name goes (or %%s, {c}, {classname}).",
    )


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model_name_or_path: str = HfArg(help="Checkpoint of a CLIP or another dual encoder: a folder or a Hub id.")
    output_dir: str = HfArg(help="Folder of results.json, results.md, plots and embeddings.")
    tasks: list[str] = HfArg(
        default_factory=lambda: ["zero_shot"], help="Protocols to run, or `all` for those that the data allow."
    )
    compare_to: str | None = HfArg(
        default=None, help="Second checkpoint: its figures and the paired differences are added."
    )
    center: bool = HfArg(default=False, help="Run every protocol also with the mean of each modality removed.")
    baseline_points: str | None = HfArg(
        default=None, help="csv of accuracies in percent (this set, shifted set) to fit the line of robustness to."
    )
    plots: bool = HfArg(default=False, help="Draw plots as PNG and SVG.")
    batch_size: int = HfArg(default=64, help="Images at a time and process.")
    num_workers: int = HfArg(default=0, help="Processes that open images.")
    dtype: str = HfArg(default="fp32", help="Precision of the model: fp32 or bf16.")
    seed: int = HfArg(default=0, help="Seed of resampling, k-means, the linear probe and samples.")
