"""The files that the rooms beside the package hold, and an installed package holds inside: recipes, configurations, templates."""

from pathlib import Path


# A checkout has them beside the package, a wheel under `rooms` (see hatch_build.py).
PACKAGE = Path(__file__).parent
ROOMS = PACKAGE / "rooms" if (PACKAGE / "rooms").is_dir() else PACKAGE.parent


def package_file(path: str) -> Path:
    """A file or folder by its path in the repository, such as `training/recipes`."""
    return ROOMS / path


def find_file(name: str, folder: str, suffix: str, what: str) -> Path:
    r"""
    A file of the user's, or the shipped one of that name.

    Args:
        name (`str`):
            A path, or the name of a shipped file without folder and suffix.
        folder (`str`):
            Where shipped ones lie.
        suffix (`str`):
            How they end, such as `.yaml`.
        what (`str`):
            What the file is, for the error.

    Raises:
        `ValueError`: neither; the shipped ones are named.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in sorted(package_file(folder).glob(f"*{suffix}"))}
    if name not in shipped:
        raise ValueError(f"There is no {what} {name}: give a file, or one of {', '.join(shipped)}.")
    return shipped[name]
