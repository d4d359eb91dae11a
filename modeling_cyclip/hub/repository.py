"""A repository on the Hub: what it holds, a commit to it, and what to do when the Hub does not take it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    ModelCard,
    RepoCard,
    SpaceCard,
    parse_eval_result_entries,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from .card import CARD
from .checkpoint_folder import sha256


CARDS = {"model": ModelCard, "space": SpaceCard}


class PublishError(RuntimeError):
    """The Hub did not take it. The message says how to go on."""


@dataclass(frozen=True)
class Published:
    r"""
    What the repository holds at the revision that is published to.

    Args:
        commit (`str`, *optional*):
            The last commit.
        files (`dict[str, RepoFile]`):
            Its files by path.
        card ([`~huggingface_hub.RepoCard`], *optional*):
            Its card.
        eval_results (`dict[str, list[EvalResultEntry]]`):
            Its `.eval_results/*.yaml` by path.
    """

    commit: str | None
    files: dict[str, RepoFile]
    card: RepoCard | None
    eval_results: dict[str, list[EvalResultEntry]]

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of its weights by path."""
        weights = {
            path: file for path, file in self.files.items() if fnmatch(path, "*.safetensors") and "/" not in path
        }
        return {path: file.lfs.sha256 if file.lfs else file.blob_id for path, file in weights.items()}

    def has(self, path: str, content: Path | bytes) -> bool:
        file = self.files.get(path)
        if file is None:
            return False
        if file.lfs is not None:
            return file.lfs.sha256 == sha256(content)
        content = content.read_bytes() if isinstance(content, Path) else content
        return file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NOTHING = Published(commit=None, files={}, card=None, eval_results={})


def read_published(api: HfApi, repo_id: str, revision: str | None = None, repo_type: str = "model") -> Published:
    """What is on the Hub now; nothing, where the repository or the branch does not exist."""
    try:
        commit = api.repo_info(repo_id, revision=revision, repo_type=repo_type).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return NOTHING
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    files = {file.path: file for file in tree if isinstance(file, RepoFile)}

    def download(path: str) -> Path:
        return Path(api.hf_hub_download(repo_id, path, revision=commit, repo_type=repo_type))

    card = CARDS[repo_type].load(download(CARD)) if CARD in files else None
    eval_results = {
        path: parse_eval_result_entries(yaml.safe_load(download(path).read_text(encoding="utf-8")))
        for path in files
        if fnmatch(path, ".eval_results/*.yaml")
    }
    return Published(commit, files, card, eval_results)


def commit(
    api: HfApi,
    repo_id: str,
    uploads: Mapping[str, Path | bytes],
    deletions: Sequence[str],
    published: Published,
    message: str,
    revision: str | None = None,
    repo_type: str = "model",
) -> CommitInfo:
    """Uploads and deletes in one commit. If somebody else commits meanwhile, the plan is void and nothing happens."""
    operations = [CommitOperationDelete(path) for path in deletions]
    operations += [CommitOperationAdd(path, content) for path, content in uploads.items()]
    return api.create_commit(
        repo_id,
        operations=operations,
        commit_message=message,
        revision=revision,
        repo_type=repo_type,
        parent_commit=published.commit,
    )


def describe(uploads: Mapping[str, Path | bytes], deletions: Sequence[str], published: Published) -> str:
    """What a dry run shows."""
    lines = []
    for path, content in sorted(uploads.items()):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if published.has(path, content):
            state = "is there"
        else:
            state = "replaces" if path in published.files else "new"
        lines.append(f"  {state:>8}  {size:>13,}  {path}")
    return "\n".join([*lines, *(f"   deleted  {published.files[path].size:>13,}  {path}" for path in deletions)])


@contextmanager
def saying_how_to_go_on(output_dir: Path, repo_id: str, what: str = "") -> Iterator[None]:
    """Turns what goes wrong with the Hub into a [`PublishError`]. `what` stands before the name: `"the Space "`."""
    try:
        yield
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet share no base class
        raise PublishError(_how_to_go_on(error, output_dir, repo_id, what)) from error


def _how_to_go_on(error: Exception, output_dir: Path, repo_id: str, what: str) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    again = f"run the same command again (after a training: python model_cards/publish.py {output_dir} {repo_id})"
    if status in (401, 403):
        return (
            f"The Hub does not let this token write to {what}{repo_id} (status {status}). Log in with `hf auth login`, or "
            f"set HF_TOKEN to a token with write permission, then {again}."
        )
    if status == 412:
        return f"Somebody else has changed {what}{repo_id} meanwhile, so nothing was published. To build on that, {again}."
    cause = f": {error.__cause__}" if error.__cause__ is not None and str(error.__cause__) not in str(error) else ""
    failed = f"{what}{repo_id} was not published: {error}{cause}"
    # A wrong name or wrong metadata (ValueError), or what the Hub refuses (4xx, but for "too many requests").
    if isinstance(error, ValueError) or (status is not None and status < 500 and status != 429):
        return f"{failed}\nThis stays so until it is corrected."
    return (
        f"{failed}\nFiles already uploaded wait on the Hub, out of sight until the "
        f"commit that comes last. To go on with what is missing, {again}."
    )
