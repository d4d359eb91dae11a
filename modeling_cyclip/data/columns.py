"""Finds and checks the columns of a dataset, for training and for evaluation."""

from pathlib import Path

from datasets import Dataset, Image, LargeList, List, Value


TEXT = (Value("string"), Value("large_string"))
# `datasets` gives one of these where an image has no label.
MISSING_LABELS = (None, -1)


def check_column(dataset: Dataset, column: str, options: str) -> None:
    """Raises a `ValueError` where there is no such column; it names the `options` to set."""
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
    """
    The column of images alone, as `image`, undecoded. Paths in it are relative to `folder`, by default to the working
    directory. Raises a `ValueError` where the column holds neither images nor paths.
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
    return dataset.rename_columns({column: "image"}).cast_column("image", Image(decode=False))
