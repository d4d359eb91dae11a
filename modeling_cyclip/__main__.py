"""`cyclip`, or `python -m modeling_cyclip`: runs every program of the package, and imports a program only to run it."""

import contextlib
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType


HELP = """usage: cyclip COMMAND [--ARGUMENT VALUE ...]        (what a command takes: cyclip COMMAND --help)

  train      train CLIP with cyclic consistency on image-caption pairs, from scratch or from a checkpoint
  evaluate   measure a checkpoint: zero-shot, retrieval, linear probe, consistency, distribution shift, ...
  compare    train CLIP and CyCLIP alike on your data and say whether cyclic consistency helps
  publish    put a checkpoint on the Hub with its card and results
  card       write the card alone
  convert    bring weights of the official code, OpenAI or OpenCLIP into a checkpoint, and back
  merge      average the weights of a checkpoint and of what was trained on from it
  prepare    bring CC3M, CC12M, COCO or Flickr30k into a form to train and evaluate on
"""
COMMANDS = ("train", "evaluate", "compare", "publish", "card", "convert", "merge", "prepare")
ASKS_FOR_HELP = {"-h", "--help"}

# Programs that accelerate can start in several processes, and its options for the number and place of the processes.
LAUNCHED = ("train", "evaluate")
LAUNCH_OPTIONS = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ASKS_FOR_HELP:
        show(HELP)
        return 0
    command, arguments = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"cyclip: there is no command {command}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if command in LAUNCHED and not ASKS_FOR_HELP.intersection(arguments):
        options, own = split_launch_options(arguments)
        if options:
            return launch(command, options, own)
    sys.argv[0] = f"cyclip {command}"
    return run(command, arguments)


def run(command: str, arguments: list[str]) -> int:
    """Runs a program in this process, or prints its help. The scripts beside the package call this, too."""
    if ASKS_FOR_HELP.intersection(arguments):
        # write_help.py has stored the program's own help, since running the program imports torch and transformers.
        help_file = Path(__file__).parent / "commands" / "help" / f"{command}.txt"
        show(help_file.read_text(encoding="utf-8"))
        return 0
    return import_module(f"modeling_cyclip.commands.{command}").main(arguments) or 0


def show(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Whoever reads, such as `head`, has read enough. Python would try once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_launch_options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separates the options for accelerate's launcher, by name, from the program's own arguments."""
    options, own, rest = {}, [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in (*LAUNCH_OPTIONS, "accelerate_config"):
            options[name] = value if equals else next(rest, "")
        else:
            own.append(argument)
    return options, own


def launch(command: str, options: dict[str, str], arguments: list[str]) -> int:
    """
    Starts the program in several processes with the given options of `accelerate launch`. Returns the exit status of the
    process that failed first: 143 if they were told to stop.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from modeling_cyclip.package_files import find_file
    from modeling_cyclip.preemption import SIGNALS

    if (config := options.pop("accelerate_config", None)) is not None:
        try:
            options["config_file"] = str(find_file(config, "training/accelerate", ".yaml", "accelerate configuration"))
        except ValueError as error:
            print(f"cyclip {command}: error: {error}", file=sys.stderr)
            return 2
    told = [part for name, value in options.items() for part in (f"--{name}", value)]
    program = ["-m", f"modeling_cyclip.commands.{command}"]
    for number in SIGNALS:
        signal.signal(number, send_to_children)
    try:
        launch_command(launch_command_parser().parse_args([*told, *program, *arguments]))
    except SignalException as error:
        status = 128 + error.sigval
    except ChildFailedError as error:
        # The launcher ends the others by SIGTERM, so the one that it counts first tells most.
        status = error.get_first_failure()[1].exitcode
    except subprocess.CalledProcessError as error:
        status = error.returncode
    else:
        return 0
    status = 128 - status if status < 0 else status
    print(f"cyclip {command}: its processes ended with status {status}", file=sys.stderr)
    return status


def send_to_children(number: int, frame: FrameType | None) -> None:
    """Sends a signal on, since launchers die of one and leave the processes that they have started alone."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
