"""Finds recipes, configurations and templates, which lie beside the package in a checkout and inside an installed one."""

from pathlib import Path


# hatch_build.py puts these files into the folder `rooms` of a wheel.
PACKAGE = Path(__file__).parent
ROOMS = PACKAGE / "rooms" if (PACKAGE / "rooms").is_dir() else PACKAGE.parent


def package_file(path: str) -> Path:
    """The place of a file or folder, given its path in the repository, such as `training/recipes`."""
    return ROOMS / path


def find_file(name: str, folder: str, suffix: str, what: str) -> Path:
    """
    The file of this path, or the shipped file of this name without folder and suffix. `what` describes the file in the
    `ValueError` that says there is neither and names the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(package_file(folder).glob(f"*{suffix}"))}
    if name not in shipped:
        raise ValueError(f"There is no {what} {name}: give a file, or one of {', '.join(shipped)}.")
    return shipped[name]
