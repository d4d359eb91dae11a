"""Writes what each program says to `--help` into help/. `cyclip` reads it there, since asking the program takes seconds.

python -m modeling_cyclip.commands.write_help
"""

import contextlib
import io
import os
import sys
from importlib import import_module
from pathlib import Path

from ..__main__ import COMMANDS


HELP = Path(__file__).with_name("help")


def help_text(command: str) -> str:
    """What a program says to `--help`, 100 columns wide."""
    said, sys.argv[0], os.environ["COLUMNS"] = io.StringIO(), f"cyclip {command}", "100"
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        import_module(f"modeling_cyclip.commands.{command}").main(["--help"])
    return said.getvalue()


if __name__ == "__main__":
    for command in COMMANDS:
        HELP.joinpath(f"{command}.txt").write_text(help_text(command), encoding="utf-8")
