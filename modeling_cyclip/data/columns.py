"""What the columns of a dataset hold, and how both training and evaluation say that it is something else."""

from pathlib import Path

from datasets import Dataset, Image, LargeList, List, Value


TEXT = (Value("string"), Value("large_string"))

# What `datasets` has where an image has no label.
MISSING_LABELS = (None, -1)


def check_column(dataset: Dataset, column: str, options: str) -> None:
    r"""
    Raises:
        `ValueError`: no such column; `options` names what to set.
    """
    if column not in dataset.column_names:
        raise ValueError(
            f"There is no column '{column}'; the data has {', '.join(dataset.column_names)}. Set {options}."
        )


def describe(feature) -> str:
    """What a column holds, in a word or two."""
    if isinstance(feature, List | LargeList):
        return f"lists of {describe(feature.feature)}"
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def only_images(dataset: Dataset, column: str, folder: str | Path | None = None) -> Dataset:
    r"""
    The column of images alone, as `image`, undecoded.

    Args:
        dataset (`datasets.Dataset`):
            The rows.
        column (`str`):
            A column that is there, of images or of paths.
        folder (`str` or `Path`, *optional*):
            What paths are relative to. Default: the working directory.

    Raises:
        `ValueError`: a column of something else.
    """
    feature = dataset.features[column]
    if not (isinstance(feature, Image) or feature in TEXT):
        raise ValueError(
            f"Column '{column}' holds {describe(feature)}, not images or paths of images. Set --image_column."
        )
    dataset = dataset.select_columns(column)
    if feature in TEXT and folder is not None:
        folder = Path(folder).resolve()
        dataset = dataset.map(
            lambda path: {column: None if path is None else str(folder / path)},
            input_columns=column,
            desc="Resolving image paths",
        )
    if column != "image":
        dataset = dataset.rename_column(column, "image")
    return dataset.cast_column("image", Image(decode=False))
