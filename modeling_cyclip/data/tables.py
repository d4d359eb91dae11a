"""Reads a table from disk as it was written, or refuses it with the line that is wrong: no value is guessed at."""

import codecs
import csv
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, config
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json
from pyarrow import parquet

from ..distributed import is_first_process
from .images import SUFFIXES
from .shards import write_stream


logger = logging.getLogger(__name__)

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Arrow reads so many bytes at a time, which must hold a whole row.
BLOCK_SIZE = 2**24
# Rows may hold whole images.
PARQUET_ROWS = 1000
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SHOWN = 80
OPEN_QUOTE = (
    "a quotation mark opens a value and is not closed as it should be. Write the marks within a value twice and put it in "
    'marks ("a ""red"" door"), or save the table as .tsv, which has no quoting.'
)

Batches = tuple[pa.Schema, Iterable[pa.RecordBatch]]
# What the log says of a table: the level and the text.
Notes = list[tuple[int, str]]


def read_table(path: str | os.PathLike, delimiter: str | None = None) -> Dataset:
    r"""
    Opens a table on disk. The values of a csv are text, whatever they look like: `NA` and `007` stay what they are. A .csv
    has quoting, a .tsv has none. The copy that is read from lies in the cache of `datasets`. It is made anew when the
    file's size or time changes.

    Args:
        path (`str` or `os.PathLike`):
            A csv, tsv, json, jsonl or parquet file. It is a name, never a pattern.
        delimiter (`str`, *optional*):
            What divides the columns of a csv. By default it is a tab, a comma, a semicolon or a bar, the first of them that
            is in the header; in a .tsv it is a tab.

    Returns:
        `datasets.Dataset`: the rows, with the columns of the file.

    Raises:
        `ValueError`: what is wrong, in which line, and what to do.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    if suffix not in FILE_FORMATS:
        raise ValueError(f"{path} is none of {', '.join(FILE_FORMATS)}; for a folder of images take --dataset_name.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    file_format = FILE_FORMATS[suffix]
    if file_format == "csv":
        has_quoting = suffix != ".tsv"
        return _cached(path, delimiter or "", lambda notes: _csv(path, delimiter, has_quoting, notes))
    return _cached(path, "", lambda notes: _json(path, notes) if file_format == "json" else _parquet(path))


def _cached(path: Path, options: str, read: Callable[[Notes], Batches]) -> Dataset:
    status = path.stat()
    identity = (1, str(path.resolve()), status.st_size, status.st_mtime_ns, options)
    digest = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    copy = Path(config.HF_DATASETS_CACHE, "tables", f"{digest}.arrow")
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        notes: Notes = []
        try:
            schema, batches = read(notes)
            schema = schema.with_metadata({**(schema.metadata or {}), b"notes": json.dumps(notes).encode()})
            write_stream(schema, batches, copy)
        except (pa.ArrowException, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as {FILE_FORMATS[path.suffix.lower()]}: {error}") from error
    # All processes of a training come here, but the log needs it once.
    if is_first_process():
        with pa.ipc.open_stream(copy) as stream:
            for level, text in json.loads(stream.schema.metadata[b"notes"]):
                logger.log(level, text)
    dataset = Dataset.from_file(str(copy))
    if len(dataset) == 0:
        raise ValueError(f"{path} cannot be read as {FILE_FORMATS[path.suffix.lower()]}: it has no rows.")
    return dataset


def _csv(path: Path, delimiter: str | None, has_quoting: bool, notes: Notes) -> Batches:
    with path.open("rb") as file:
        beginning = file.read(1000)
    encoding = _encoding(beginning)
    if encoding == "utf-16":
        notes.append((logging.INFO, f"{path} is in UTF-16."))
    elif b"\0" in beginning:
        raise ValueError(f"{path} is no text in UTF-8: it is UTF-16 without its mark, or no table. Save it as UTF-8.")
    try:
        names, num_lines, found = _header(path, encoding, delimiter, has_quoting)
    except UnicodeDecodeError:
        _refuse_encoding(path)
    if delimiter is None and has_quoting and found != ",":
        notes.append((logging.INFO, f"The columns of {path} are divided by {found!r}."))
    delimiter = found
    stripped = [name.strip() or f"column {number}" for number, name in enumerate(names, 1)]
    if repeated := [name for number, name in enumerate(stripped) if name in stripped[:number]]:
        raise ValueError(f"{path} has two columns named '{repeated[0]}'.")
    check_rows = partial(_check_rows, path, encoding, delimiter, has_quoting, len(names), num_lines)
    schema = pa.schema([(name, pa.string()) for name in stripped])
    reader = partial(
        arrow_csv.open_csv,
        path,
        arrow_csv.ReadOptions(
            column_names=stripped,
            skip_rows=num_lines,
            encoding=encoding.removesuffix("-sig"),  # Arrow passes over the mark by itself
            block_size=BLOCK_SIZE,
        ),
        arrow_csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if has_quoting else False, newlines_in_values=has_quoting
        ),
        arrow_csv.ConvertOptions(column_types=schema, strings_can_be_null=False, null_values=[]),
    )
    if not has_quoting and _looks_quoted(path, delimiter):
        # As if a program had quoted the values of a table without quoting.
        text = (
            f"{path} has values that look quoted, with doubled marks. A .tsv has no quoting, so that they stay as they are. If "
            "the marks are not meant, name the file .csv."
        )
        notes.append((logging.WARNING, text))
    # `image, caption` in the header: the values have spaces behind the comma, too.
    return schema, _csv_batches(path, reader, check_rows, is_spaced=names != [name.strip() for name in names])


def _csv_batches(
    path: Path,
    open_reader: Callable[[], arrow_csv.CSVStreamingReader],
    check_rows: Callable[[], None],
    is_spaced: bool,
) -> Iterator[pa.RecordBatch]:
    """The batches of a csv. Where something is wrong, `check_rows` raises a `ValueError` with its line."""
    has_line_breaks = False
    try:
        for batch in open_reader():
            if is_spaced:
                columns = [pc.utf8_trim_whitespace(column) for column in batch.columns]
                batch = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
            has_line_breaks |= any(pc.any(pc.match_substring(column, "\n")).as_py() for column in batch.columns)
            yield batch
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise ValueError(f"{path} cannot be read as csv: it has no rows.") from error
        check_rows()
        raise
    # A line break within a value is either a quoted one, or what an open quotation mark has swallowed.
    if has_line_breaks:
        check_rows()


def _encoding(beginning: bytes) -> str:
    """Python's name of the encoding by the mark that a file begins with: UTF-16, or UTF-8 with or without a mark."""
    return "utf-16" if beginning.startswith(UTF_16) else "utf-8-sig"


def _header(path: Path, encoding: str, delimiter: str | None, has_quoting: bool) -> tuple[list[str], int, str]:
    """The names of the columns, the number of lines they take, and the delimiter."""
    with path.open(encoding=encoding, newline="") as file:
        num_blank, line = 0, file.readline()
        while line and not line.strip():
            num_blank, line = num_blank + 1, file.readline()
        if not line:
            raise ValueError(f"{path} is empty.")
        if delimiter is None:
            # open_clip's lists are .csv files with tabs.
            found = [mark for mark in "\t,;|" if mark in line] if has_quoting else ["\t"]
            delimiter = found[0] if found else ","
        if not has_quoting:
            return line.rstrip("\r\n").split(delimiter), num_blank + 1, delimiter
        reader = csv.reader(chain([line], file), delimiter=delimiter)
        return next(reader), num_blank + reader.line_num, delimiter


def _check_rows(path: Path, encoding: str, delimiter: str, has_quoting: bool, num_fields: int, num_lines: int) -> None:
    """Reads the rows behind the header. Raises a `ValueError` at the first line that is no row."""
    previous_line = num_lines
    try:
        with path.open(encoding=encoding, newline="" if has_quoting else None) as file:
            for _ in range(num_lines):
                next(file)
            csv.field_size_limit(2**30)
            reader = csv.reader(
                file, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if has_quoting else csv.QUOTE_NONE
            )
            for row in reader:
                if row and len(row) != num_fields:
                    text = delimiter.join(row)
                    what_to_do = (
                        "Put a value that holds the delimiter in quotation marks, or set --delimiter."
                        if has_quoting
                        else "A tab divides the columns, and quotation marks mean nothing in a .tsv."
                    )
                    fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
                    raise ValueError(
                        f"{path}, line {previous_line + 1}: {fields}, where the header has {num_fields}: "
                        f"{text[:SHOWN]!r}. {what_to_do}"
                    )
                for value in row:
                    if "\n" in value:
                        _refuse_rows_within(value, path, previous_line + 1, delimiter, num_fields)
                previous_line = num_lines + reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {previous_line + 1}: {OPEN_QUOTE}") from error
    except UnicodeDecodeError:
        _refuse_encoding(path)


def _refuse_rows_within(value: str, path: Path, line: int, delimiter: str, num_fields: int) -> None:
    """Raises a `ValueError` where a line of a value is itself a row with an image: an open quotation mark has swallowed it."""
    for text in value.splitlines()[1:]:
        fields = text.split(delimiter)
        if len(fields) == num_fields and any(field.strip().lower().endswith(SUFFIXES) for field in fields):
            raise ValueError(f"{path}, line {line}: {OPEN_QUOTE}")


def _refuse_encoding(path: Path) -> NoReturn:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                around = line[max(0, error.start - 30) : error.start + 30].decode("cp1252", "replace").strip()
                raise ValueError(
                    f"{path}, line {number} is not in UTF-8. In Windows-1252, as Excel writes it, it reads {around!r}: if "
                    "that is right, save the table as `CSV UTF-8`, or convert it by `iconv -f WINDOWS-1252 -t UTF-8`."
                ) from error
    raise ValueError(f"{path} is not in UTF-8.")


def _looks_quoted(path: Path, delimiter: str) -> bool:
    quoted = re.compile(rf'(?:^|{re.escape(delimiter)})"(?:[^"]|"")*""(?:[^"]|"")*"(?:{re.escape(delimiter)}|$)', re.M)
    with path.open(encoding="utf-8", errors="replace") as file:
        return quoted.search(file.read(BLOCK_SIZE)) is not None


def _json(path: Path, notes: Notes) -> Batches:
    content = path.read_bytes()
    try:
        if content.startswith((*UTF_16, codecs.BOM_UTF8)):
            content = content.decode(_encoding(content)).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as json: {error}") from error
    table = None
    if not content.strip():
        raise ValueError(f"{path} cannot be read as json: it has no rows.")
    if content.lstrip()[:1] == b"{":
        table = _json_object(path, content, notes) if path.suffix.lower() == ".json" else None
        if table is None:
            table = _json_lines(path, content)
    else:
        table = _table_of_rows(path, _parsed(path, content))
    return table.schema, table.to_batches()


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as json: {error}") from error


def _json_lines(path: Path, content: bytes) -> pa.Table:
    try:
        return _read_json_lines(content)
    except pa.ArrowException:
        rows = []
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"{path} cannot be read as json: line {number}: {error}") from error
        return _table_of_rows(path, rows)


def _read_json_lines(content: bytes) -> pa.Table:
    options = arrow_json.ReadOptions(block_size=max(BLOCK_SIZE, 2 * content.find(b"\n")))
    table = arrow_json.read_json(pa.BufferReader(content), options)
    # Arrow takes a column of dates for times, but they are words here.
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if not times:
        return table
    words = arrow_json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in times]))
    return arrow_json.read_json(pa.BufferReader(content), options, words)


def _json_object(path: Path, content: bytes, notes: Notes) -> pa.Table | None:
    """The table of a json file that is one object: COCO's captions, or captions by file name. `None` for json lines."""
    try:
        value = json.loads(content)
    except ValueError:
        return None  # several objects, or a fault that the lines name
    images, annotations = value.get("images"), value.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        return _coco(path, images, annotations, notes)
    if isinstance(images, list) and images and "sentences" in images[0]:
        raise ValueError(
            f"{path} is a Karpathy json: bring it into tables by `cyclip prepare karpathy {path} FOLDER`, and train on "
            "FOLDER/train.jsonl."
        )
    if value and all(name.lower().endswith(SUFFIXES) for name in value):
        rows = [{"image": name, "caption": caption} for name, caption in value.items()]
        return _table_of_rows(path, rows)
    lists = [values for values in value.values() if isinstance(values, list)]
    if lists and all(isinstance(row, dict) for values in lists for row in values):
        named = ", ".join(name for name, values in value.items() if isinstance(values, list))
        raise ValueError(
            f"{path} is one object, with lists named {named}. A table is a list of rows, or has one row in each line."
        )
    return None


def _coco(path: Path, images: list[dict], annotations: list[dict], notes: Notes) -> pa.Table:
    captions: dict[Any, list[str]] = {}
    try:
        for annotation in annotations:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        rows = [{"image": image["file_name"], "captions": captions.get(image["id"], [])} for image in images]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} looks like a COCO json, but its annotations are no captions ({type(error).__name__}: {error}). Take "
            "captions_*.json."
        ) from error
    text = f"{path} is a COCO json of captions: {len(rows)} images, {len(annotations)} captions."
    notes.append((logging.INFO, text))
    return _table_of_rows(path, rows)


def _table_of_rows(path: Path, rows: Any) -> pa.Table:
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} cannot be read as json: it has no rows.")
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise ValueError(
            f"{path}, row {wrong[0]} is {json.dumps(rows[wrong[0] - 1])[:SHOWN]}, not an object with the names of columns."
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column(path, name, [row.get(name) for row in rows]) for name in names})


def _column(path: Path, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        kinds = [None if value is None else type(value).__name__ for value in values]
        # One caption as a string, several as a list.
        if set(kinds) <= {None, "str", "list"}:
            try:
                return pa.array(
                    [[value] if isinstance(value, str) else value for value in values], pa.list_(pa.string())
                )
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                pass
        first = next(kind for kind in kinds if kind is not None)
        row = next((number for number, kind in enumerate(kinds) if kind not in (None, first)), 0)
        raise ValueError(
            f"{path}, row {row + 1}: column '{name}' has {json.dumps(values[row])[:SHOWN]}, another kind of value than in "
            f"the rows before."
        ) from None


def _parquet(path: Path) -> Batches:
    file = parquet.ParquetFile(path)
    # `datasets` knows no dictionary-encoded columns, pandas' categories.
    fields = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in file.schema_arrow
    ]
    schema = pa.schema(fields, file.schema_arrow.metadata)
    return schema, (batch.cast(schema) for batch in file.iter_batches(batch_size=PARQUET_ROWS))
