"""Packages of the npm registry, downloaded without npm."""

import hashlib
import io
import os
import tarfile
from base64 import b64encode
from http.client import HTTPException
from urllib.request import urlopen


def download(package: str, version: str, sha512: str) -> dict[str, bytes]:
    """
    The files of a package by their path in it. `sha512` is that of its archive as the registry gives it ("integrity"). The
    environment variable npm_config_registry names another registry.
    """
    registry = os.environ.get("npm_config_registry", "https://registry.npmjs.org").rstrip("/")
    url = f"{registry}/{package}/-/{package.split('/')[-1]}-{version}.tgz"
    try:
        with urlopen(url, timeout=60) as response:
            archive = response.read()
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{url} could not be downloaded ({error}). Is the npm registry within reach? "
            "The environment variable npm_config_registry names another one."
        ) from error
    if (found := b64encode(hashlib.sha512(archive).digest()).decode()) != sha512:
        raise ValueError(f"{url} is not the archive expected: its sha512 is {found} and not {sha512}.")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name.partition("/")[2]: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
