"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit.

cyclip publish OUTPUT_DIR user/name --results results/results.json --dry_run
cyclip publish OUTPUT_DIR user/name --results results/results.json --license apache-2.0
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

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
    eval_result_entries_to_yaml,
    parse_eval_result_entries,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import yaml_dump
from huggingface_hub.utils.sha import git_hash

from ..run_record import RUN_RECORD
from .card import CARD, check_checkpoint, edited_card, make_card, merge_results, sha256, weight_files, write_card
from .results import Evaluation, eval_result_entries, eval_results, merge_entries


# A list of what goes, not of what stays: pickles (training_args.bin, optimizer states), checkpoint-* folders and whatever
# else lies there are never published. The *.py are the modelling files of a ResNet checkpoint.
PUBLISHED = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "*.py", "preprocessor_config.json", "processor_config.json",
    "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", RUN_RECORD,
    "trainer_state.json", "*_results.json", "plots/*.png", "runs/**/events.out.tfevents.*",
)  # fmt: skip

# Files in the repository that belong to its weights: new weights must not stand beside those of others.
OF_THE_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", ".eval_results/*", "comparison/*", "evaluation/*", "plots/*", "runs/*",
)  # fmt: skip

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
        return file.blob_id == git_hash(content)


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


def publish(
    output_dir: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    license: str | None = None,
    new_card: bool = False,
    comparison: dict[str, Any] | None = None,
    card: ModelCard | None = None,
    commit_message: str = "Publish the model",
) -> CommitInfo:
    r"""
    Publishes a checkpoint in one commit: whoever opens the model sees all of it or nothing. What the repository has
    already is not uploaded again. Unless `card` is given, the card is

    - the folder's README.md, if somebody has edited it since it was written or last published;
    - else the one on the Hub, if it belongs to the same weights: new results go into its metadata, its text stays;
    - else written anew (see [`make_card`]).

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder; at best a training's output folder.
        repo_id (`str`):
            Where to, `user/name`. Created if it is not there.
        private (`bool`, *optional*):
            Whether a new repository is private.
        revision (`str`, *optional*, defaults to `"main"`):
            The branch. Created if it is not there.
        token (`str`, *optional*):
            A token with write permission. Default: that of `hf auth login` or `HF_TOKEN`.
        evaluations (`Sequence[Evaluation]`, *optional*):
            Results of evaluation, from [`read_results`].
        license (`str`, *optional*):
            The Hub's identifier of the weights' licence, for a new card.
        new_card (`bool`, *optional*, defaults to `False`):
            Whether to write the card anew whatever there is.
        comparison (`dict`, *optional*):
            Results of a comparison of objectives, from [`read_comparison`], for a new card.
        card ([`~huggingface_hub.ModelCard`], *optional*):
            The card, whatever there is.
        commit_message (`str`, *optional*):
            What the commit says.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`: no whole checkpoint there.
        [`PublishError`]: the Hub did not take it.
    """
    output_dir, api = Path(output_dir), HfApi(token=token)
    check_checkpoint(output_dir)
    with saying_how_to_go_on(output_dir, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        published = read_published(api, repo_id, revision)
    words = {"license": license, "new_card": new_card, "comparison": comparison, "card": card}
    uploads, deletions, card = make_plan(output_dir, repo_id, published, evaluations, **words)
    with saying_how_to_go_on(output_dir, repo_id):
        committed = commit(api, repo_id, uploads, deletions, published, commit_message, revision)
    write_card(output_dir, card)
    return committed


def make_plan(
    output_dir: Path,
    repo_id: str,
    published: Published,
    evaluations: Sequence[Evaluation] = (),
    *,
    license: str | None = None,
    new_card: bool = False,
    comparison: dict[str, Any] | None = None,
    card: ModelCard | None = None,
) -> tuple[dict[str, Path | bytes], list[str], ModelCard]:
    """What the repository shall hold, by path, what no longer, and its card. Arguments as of [`publish`]."""
    is_same_model = published.weights == {path.name: sha256(path) for path in weight_files(output_dir)}
    figures = [figure for evaluation in evaluations for figure in evaluation.figures]
    if not new_card:
        card = card or edited_card(output_dir) or (published.card if is_same_model else None)
    card = card or make_card(output_dir, repo_id, figures, license, comparison)

    metadata, text = card.data.to_dict(), card._content
    kept = published.card.data.get("eval_results", []) if is_same_model and published.card is not None else []
    merge_results(card, [*kept, *eval_results(figures)], model_name=repo_id.split("/")[-1])
    if card.data.to_dict() != metadata:
        text = str(card)

    uploads: dict[str, Path | bytes] = {
        path.relative_to(output_dir).as_posix(): path for path in published_files(output_dir)
    }
    for evaluation in evaluations:
        uploads |= evaluation.files(repo_id)
    if comparison is not None:
        uploads["comparison/results.json"] = (json.dumps(comparison, indent=1) + "\n").encode()
    for path, new in eval_result_entries(figures).items():
        entries = published.eval_results.get(path, []) if is_same_model else []
        for entry in new:
            entries = merge_entries(entries, entry)
        uploads[path] = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()
    uploads[CARD] = text.encode()
    deletions = []
    if published.weights and not is_same_model:
        old = [path for path in published.files if any(fnmatch(path, pattern) for pattern in OF_THE_WEIGHTS)]
        deletions = [path for path in old if path not in uploads]
    return uploads, deletions, card


def published_files(output_dir: Path) -> list[Path]:
    """The files to publish, the card aside."""
    return sorted({path for pattern in PUBLISHED for path in output_dir.glob(pattern) if path.is_file()})


def left_out(output_dir: Path) -> list[str]:
    """What stays, folders by their names."""
    published = {path.relative_to(output_dir) for path in published_files(output_dir)}
    folders = {path.parts[0] for path in published}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in output_dir.iterdir()
        if path.name not in folders and path.name != "README.md" and not path.name.startswith(".")
    )


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
    again = f"run the same command again (after a training: cyclip publish {output_dir} {repo_id})"
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
