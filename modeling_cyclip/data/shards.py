"""Opens WebDataset shards as a table of captions and of places in the tars, which it reads once from the tar headers."""

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets, config

from ..distributed import is_first_process


logger = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")
# Members that hold a caption, in the order in which they count.
TEXTS = ("txt", "text", "caption", "json")
# Of a json member or file.
FIELDS = ("caption", "captions", "text", "txt")
FEATURES = Features(
    {
        "image": {
            "path": Value("string"),
            "member": Value("string"),
            "offset": Value("int64"),
            "size": Value("int64"),
        },
        "caption": List(Value("string")),
    }
)
# What is left out, and how the log says so.
REASONS = {
    "image": "have no usable image",
    "caption": "have no usable caption",
    "repeat": "repeat the key of another one in their shard",
}
# Zeros fill a tar up to a whole record, which is no larger.
LARGEST_PADDING = 2**20
# Processes take longer to start than a few shards take to read.
SHARDS_WORTH_A_PROCESS = 8


def load_shards(patterns: list[str]) -> Dataset:
    r"""
    Opens WebDataset shards as a map-style dataset: an image is read by its offset when its row is used.

    A sample is an image (`KEY.jpg`, `jpeg`, `png` or `webp`) and its caption: `KEY.txt`, `KEY.text`, `KEY.caption`, or the
    field `caption` (or `captions`, `text`, `txt`) of `KEY.json`, a string or a list of strings. `KEY.jpg.txt` will do, too.
    A key may have dots. An image `KEY.NAME.png` without a caption of its own is a further part of the sample `KEY`, which
    is not read. Where a key comes again in a shard, the first sample that is whole counts.
    The index of a shard lies beside it (`SHARD.tar.index.arrow`), or in the cache of `datasets` where that cannot be
    written. It is made anew when the shard's size or time changes.

    Args:
        patterns (`list[str]`):
            Files or globs, such as `data/cc3m-*.tar`, also with ranges: `data/cc3m-{00000..00331}.tar`.

    Returns:
        `datasets.Dataset`: the columns `image` (`path` of the shard, `member`, `offset` and `size`, which
        [`~modeling_cyclip.data.images.load_image`] opens), `caption` (a list of strings) and `shard` (its number), in the order
        of the shards' names.

    Raises:
        `ValueError`: no shard, or no sample in any of them.
    """
    shards = sorted({os.path.abspath(name) for pattern in patterns for name in _names(pattern)})
    if not shards:
        raise ValueError(
            f"No file matches {' '.join(patterns)}. Shards are local files or globs such as 'data/cc3m-*.tar'; those of "
            "the Hub are downloaded first, `hf download --repo-type dataset ID --local-dir data`."
        )
    indexes = {shard: _kept_index(shard) for shard in shards}
    if missing := [shard for shard, index in indexes.items() if index is None]:
        logger.info(f"Indexing {len(missing)} of {len(shards)} shards.")
        indexes.update(zip(missing, _make_indexes(missing), strict=True))
    # All processes of a training come here, but the log needs it once.
    if is_first_process():
        _log([report for _, report in indexes.values()])
    tables = [Dataset.from_file(str(index)) for index, report in indexes.values() if report["num_samples"]]
    if not tables:
        raise ValueError(
            f"None of the {len(shards)} shards of {' '.join(patterns)} has a sample: images named KEY.jpg, jpeg, png or "
            "webp, each with KEY.txt, KEY.caption or KEY.json."
        )
    return concatenate_datasets(tables).add_column(
        "shard", np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables])
    )


def _names(pattern: str) -> list[str]:
    bounds = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    # A plain name stays even if there is no such file: the log then names it.
    if os.path.exists(pattern) or not (bounds or has_magic(pattern)):
        return [pattern]
    if bounds is None:
        return glob(pattern, recursive=True)
    numbers = (f"{number:0{len(bounds[1])}}" for number in range(int(bounds[1]), int(bounds[2]) + 1))
    before, after = pattern[: bounds.start()], pattern[bounds.end() :]
    return [name for number in numbers for name in _names(before + number + after)]


def _log(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        if report["problem"]:
            logger.warning(f"{report['path']} {report['problem']}; {report['num_samples']} samples of it are used.")
    found = sum(report["num_samples"] + sum(map(len, report["left_out"].values())) for report in reports)
    for reason, words in REASONS.items():
        names = [f"{report['path']}/{key}" for report in reports for key in report["left_out"][reason]]
        if names:
            logger.warning(f"{len(names)} of {found} samples {words} and are left out, the first one: {names[0]}")


def _index_paths(shard: str) -> list[Path]:
    digest = hashlib.sha256(os.fsencode(shard)).hexdigest()[:16]
    cache = Path(config.HF_DATASETS_CACHE, "shards", f"{Path(shard).stem}-{digest}.index.arrow")
    return [Path(f"{shard}.index.arrow"), cache]


def _identity(shard: str) -> dict[str, Any]:
    status = os.stat(shard)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    # The rows hold the path, so that an index does not survive a move.
    return {"version": 3, "path": _unicode(shard), "size": status.st_size, "time": status.st_mtime_ns}


def _kept_index(shard: str) -> tuple[Path, dict[str, Any]] | None:
    for path in _index_paths(shard):
        try:
            with pa.ipc.open_stream(path) as stream:
                report = json.loads(stream.schema.metadata[b"shard"])
            if _identity(shard).items() <= report.items():
                return path, report
        except (OSError, pa.ArrowInvalid, KeyError, ValueError):
            continue
    return None


def _make_indexes(shards: list[str]) -> list[tuple[Path | None, dict[str, Any]]]:
    num_processes = min(os.cpu_count(), len(shards) // SHARDS_WORTH_A_PROCESS)
    if num_processes < 2:
        return [_make_index(shard) for shard in shards]
    with multiprocessing.Pool(num_processes) as pool:
        return pool.map(_make_index, shards, chunksize=1)


def _make_index(shard: str) -> tuple[Path | None, dict[str, Any]]:
    try:
        identity = _identity(shard)
        parts, problem = _walk(shard, identity["size"])
    except OSError as error:
        # This is not kept: next time the disk or the permissions may be better, with the same size and time of the file.
        problem = f"cannot be read ({error.strerror or error})"
        left_out = {reason: [] for reason in REASONS}
        return None, {"path": shard, "problem": problem, "num_samples": 0, "left_out": left_out}
    rows, left_out = _rows(shard, parts)
    report = {**identity, "problem": problem, "left_out": left_out, "num_samples": len(rows)}
    table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
    table = table.replace_schema_metadata({**table.schema.metadata, b"shard": json.dumps(report).encode()})
    beside, cache = _index_paths(shard)
    try:
        return write_stream(table.schema, table.to_batches(), beside), report
    except OSError:
        cache.parent.mkdir(parents=True, exist_ok=True)
        return write_stream(table.schema, table.to_batches(), cache), report


def write_stream(schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path) -> Path:
    """Writes an Arrow stream that is whole or not there."""
    # It gets another name first: processes of several nodes may write it at once, and a run may be killed.
    unfinished = path.with_name(f"{path.name}.{platform.node()}-{os.getpid()}")
    try:
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            for batch in batches:
                stream.write_batch(batch)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _walk(shard: str, file_size: int) -> tuple[dict[str, list[dict[str, Any]]], str | None]:
    """The parts of a shard's samples, by key, and the problem that ends it early."""
    parts: dict[str, list[dict[str, Any]]] = {}
    previous_key = None
    with open(shard, "rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep them all
                if member.offset_data + member.size > file_size:
                    raise EOFError(f"in the middle of {_unicode(member.name)}")
                if member.isreg() and not member.issparse():
                    previous_key = _add_member(parts, previous_key, member, file)
            # tarfile takes anything that is no header for the end. The true end is a block of zeros.
            file.seek(tar.offset)
            rest = file.read(LARGEST_PADDING)
            if rest[: tarfile.BLOCKSIZE] != tarfile.NUL * tarfile.BLOCKSIZE:
                raise EOFError("without the mark of an archive's end")
            # More behind it is a hole in a download, or a second archive in the file.
            if rest.strip(tarfile.NUL) or tar.offset + len(rest) < file_size:
                raise EOFError(f"at byte {tar.offset} of {file_size}")
        except OSError:
            raise
        except EOFError as error:
            return parts, f"is cut off, it ends {error}"
        # tarfile raises nearly anything on damaged headers.
        except Exception as error:
            return parts, f"is no tar, or a compressed or damaged one ({type(error).__name__}: {error})"
    return parts, None


def _rows(shard: str, parts: dict[str, list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The rows of the samples that are whole, and by reason the keys of those left out."""
    samples = {}
    rows, left_out = [], {reason: [] for reason in REASONS}
    for key, its_parts in parts.items():
        samples[key], num_repeats = _first_whole(its_parts)
        left_out["repeat"] += [key] * num_repeats
    for key, sample in samples.items():
        captions = _usable_captions(sample)
        if "image" in sample and captions:
            rows.append({"image": {"path": _unicode(shard), **sample["image"]}, "caption": captions})
        elif not _belongs_to_another(key, samples):
            left_out["caption" if "image" in sample else "image"].append(key)
    return rows, left_out


def _add_member(
    parts: dict[str, list[dict[str, Any]]], previous_key: str | None, member: tarfile.TarInfo, file
) -> str | None:
    """
    Puts a member to the parts of its key, and returns the key of the last one that was put anywhere. A part has what lies
    together in the tar, and nothing twice, so that it is of one sample.
    """
    name = _unicode(member.name)
    folder, slash, base = name.rpartition("/")
    # In WebDataset a key ends at the first dot of the file name, so that photo.2019.jpg would be no image.
    stem, _, extension = base.rpartition(".")
    extension = extension.lower()
    if stem.startswith(".") or not stem or extension not in (*IMAGES, *TEXTS):
        return previous_key
    if extension in TEXTS and stem.lower().endswith(tuple(f".{image}" for image in IMAGES)):
        stem = stem.rpartition(".")[0]
    key = folder + slash + stem
    its_parts = parts.setdefault(key, [])
    if key != previous_key or _begins_again(its_parts[-1], extension):
        its_parts.append({})
    if extension in IMAGES:
        its_parts[-1].setdefault("image", {"member": name, "offset": member.offset_data, "size": member.size})
    else:
        file.seek(member.offset_data)
        its_parts[-1][extension] = captions_of(file.read(member.size), is_json=extension == "json")
    # A further part of a sample, such as KEY.mask.png, does not end it.
    return previous_key if previous_key is not None and key.startswith(f"{previous_key}.") else key


def _begins_again(part: dict[str, Any], extension: str) -> bool:
    if extension not in IMAGES or "image" not in part:
        return extension in part
    # A sample may have its image in two forms, and then its caption, but hardly the other way round.
    is_same_form = part["image"]["member"].lower().endswith(f".{extension}")
    return is_same_form or any(text in part for text in TEXTS)


def _belongs_to_another(key: str, samples: dict[str, dict[str, Any]]) -> bool:
    """Whether a sample that is not whole is a further part, `KEY.NAME`, of another one."""
    while "." in key.rpartition("/")[2]:
        key = key.rpartition(".")[0]
        if "image" in samples.get(key, {}) and _usable_captions(samples[key]):
            return True
    return False


def _first_whole(parts: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The sample of a key, and how many more of it there are."""
    num_repeats = max(Counter(kind for part in parts for kind in part).values()) - 1
    if num_repeats:
        for part in parts:
            if "image" in part and _usable_captions(part):
                return part, num_repeats
    # All images of a shard may lie before all captions.
    sample = {}
    for part in parts:
        if sample.keys() & part.keys():
            break
        sample |= part
    return sample, num_repeats


def _usable_captions(sample: dict[str, Any]) -> list[str]:
    return next((sample[text] for text in TEXTS if sample.get(text)), [])


def captions_of(content: bytes, is_json: bool) -> list[str]:
    """The captions of a .txt or .json member that are texts and not empty."""
    try:
        value = content.decode("utf-8-sig")
        if is_json:
            value = json.loads(value)
            value = next((value[name] for name in FIELDS if name in value), None) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return []
    values = value if isinstance(value, list) else [value]
    return [_unicode(text.strip()) for text in values if isinstance(text, str) and text.strip()]


def _unicode(text: str) -> str:
    """The text with half characters (lone surrogates, in JSON and in file names), which Arrow cannot store, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
