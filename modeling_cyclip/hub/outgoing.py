"""What of a file may leave the machine: no folder of it, no name of it, and nothing of the data."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# An absolute path, up to the name of the file: in a string of its own, in a command line, or after `file://`. A URL and an
# `and/or` are none.
FOLDERS = re.compile(
    r"(?:(?<![\w/\\.~])|(?<=file://))"
    r"(?:~[/\\](?:[^\s/\\\"'`]+[/\\])*|(?:[A-Za-z]:)?[/\\](?:[^\s/\\\"'`,;:()\[\]{}<>|]+[/\\])+)"
)

# In files of TensorBoard: the numbers of fields of the messages Event and Summary.Value.
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SOURCE = 1, 2, 3, 5, 10
TAG, SIMPLE_VALUE = 1, 2


def without_folders(value: Any) -> Any:
    """A value of JSON in which every absolute path has become the name of its file."""
    if isinstance(value, dict):
        return {without_folders(name): without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return FOLDERS.sub("", value) if isinstance(value, str) else value


def outgoing_json(content: Path | bytes) -> Path | bytes:
    """A JSON file without folders: as it is if there are none in it."""
    told = json.loads(content if isinstance(content, bytes) else content.read_bytes())
    shown = without_folders(told)
    if isinstance(shown, dict) and shown.get(
        "best_model_checkpoint"
    ):  # of a trainer_state.json; perhaps a relative path
        shown["best_model_checkpoint"] = Path(shown["best_model_checkpoint"]).name
    return content if shown == told else (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()


def outgoing_log(path: Path) -> bytes:
    """
    The scalars of a file of TensorBoard. Its texts hold all arguments of the training, and what a script of one's own adds
    may hold data: texts, pictures, histograms.
    """
    content, start, kept = path.read_bytes(), 0, []
    # A record is the length of an event, a checksum, the event and another checksum. One that is cut off ends the file.
    while start + 12 <= len(content):
        end = start + 16 + struct.unpack_from("<Q", content, start)[0]
        if end > len(content):
            break
        if _is_scalar(content[start + 12 : end - 4]):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _is_scalar(event: bytes) -> bool:
    """Whether an event only holds scalars, or opens the file."""
    for number, value in _fields(event):
        if number == SUMMARY:
            for _, summarised in _fields(value):
                if {number for number, _ in _fields(summarised)} != {TAG, SIMPLE_VALUE}:
                    return False
        elif number not in (WALL_TIME, STEP, FILE_VERSION, SOURCE):
            return False
    return True


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of the fields of a message of protobuf."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while position < len(message):
        number, kind = divmod(varint(), 8)
        start = position
        if kind == 0:
            varint()
        else:
            size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
            start, position = position, position + size
        yield number, message[start:position]
