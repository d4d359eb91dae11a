"""Every `cyclip` command of the documents has arguments that exist and recipes that ship."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from modeling_cyclip.__main__ import COMMANDS, LAUNCH_OPTIONS, LAUNCHED
from modeling_cyclip.training_args import CyCLIPTrainingArguments


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = {"compare": ROOT / "training/recipes/comparisons"}


def commands(page: Path) -> list[list[str]]:
    """The words of each command that stands in a block of its own."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(text for language, text in blocks if language in ("", "bash")).replace("\\\n", " ").splitlines()
    return [line.partition(" # ")[0].split()[1:] for line in lines if line.startswith("cyclip ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_take_what_they_are_told(page):
    for command, *words in commands(page):
        assert command in COMMANDS
        taken = (ROOT / f"modeling_cyclip/commands/help/{command}.txt").read_text(encoding="utf-8")
        names = set(re.findall(r"--(\w+)", taken))
        if command in LAUNCHED:
            names |= {"accelerate_config", *LAUNCH_OPTIONS}
        if command == "train":
            names |= {field.name for field in fields(CyCLIPTrainingArguments)}
        if command == "prepare":  # its help names the two ways only
            names |= {"image_dir", "image_size", "splits"}
        told = [word.removeprefix("--") for word in words if word.startswith("--")]
        assert [name for name in told if name not in names] == [], f"cyclip {command} in {page.name}"
        if "--config" in words and (config := words[words.index("--config") + 1]).islower() and "." not in config:
            assert (RECIPES.get(command, ROOT / "training/recipes") / f"{config}.yaml").is_file(), config


def test_there_are_commands():
    found = [command for page in PAGES for command, *_ in commands(page)]
    assert set(found) == set(COMMANDS) - {"card"} and len(found) > 20
