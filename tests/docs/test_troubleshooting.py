"""The page by symptom has every warning and every refusal that a training can meet, as one reads it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modeling_cyclip"
FILES = [
    PACKAGE / "health.py",
    PACKAGE / "trainer.py",
    PACKAGE / "trainer_checks.py",
    PACKAGE / "training_args.py",
    PACKAGE / "checkpoints.py",
    PACKAGE / "resume.py",
    PACKAGE / "machines.py",
    PACKAGE / "preemption.py",
    PACKAGE / "fsdp.py",
    PACKAGE / "dual_encoder.py",
    PACKAGE / "towers.py",
    PACKAGE / "commands/train.py",
    PACKAGE / "commands/train_checks.py",
    PACKAGE / "data/data_collator.py",
    PACKAGE / "data/sampler.py",
    PACKAGE / "data/samples.py",
]


def plain(text: str) -> str:
    """Without line breaks and marks, which differ between code and page."""
    return re.sub(r"[\s>`]+", " ", text)


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first fixed part of some length of each text that is raised, warned of, or, in health.py, returned as a sign."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            texts = node.exc.args[:1]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warning":
            texts = node.args[:1]
        elif isinstance(node, ast.Return) and path.name == "health.py":
            texts = [node.value]
        else:
            continue
        for text in texts:
            if isinstance(text, ast.JoinedStr):
                parts = [part.value for part in text.values if isinstance(part, ast.Constant)]
            else:
                parts = [text.value] if isinstance(text, ast.Constant) and isinstance(text.value, str) else []
            if parts:
                yield node.lineno, next((part for part in parts if len(part) >= 20), max(parts, key=len))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_messages_have_an_entry(path):
    page = plain((ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    found = list(messages(path))
    assert found
    # Its beginning tells a message from any other.
    assert [(line, text) for line, text in found if plain(text).split(". ")[0][:40].strip() not in page] == []
