"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit.

python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --dry_run
python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --license apache-2.0
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import yaml_dump

from model_cards.card import (
    CARD,
    add_card_arguments,
    edited_card,
    make_card,
    merge_results,
    read_all_results,
    write_card,
)
from model_cards.checkpoint_folder import check_checkpoint, left_out, published_files, weight_files
from model_cards.results import Evaluation, eval_result_entries, eval_results


# Files in the repository that belong to its weights: new weights must not stand beside those of others.
OF_THE_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", ".eval_results/*", "evaluation/*", "plots/*", "runs/*")


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
        card ([`~huggingface_hub.ModelCard`], *optional*):
            Its card.
    """

    commit: str | None
    files: dict[str, RepoFile]
    card: ModelCard | None

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
            return file.lfs.sha256 == _sha256(content)
        content = content.read_bytes() if isinstance(content, Path) else content
        return file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NOTHING = Published(commit=None, files={}, card=None)


@dataclass(frozen=True)
class Plan:
    r"""
    What a commit would do.

    Args:
        uploads (`dict[str, Path | bytes]`):
            What the repository shall hold, by path; unchanged files among it.
        deletions (`list[str]`):
            What it shall hold no longer.
        card ([`~huggingface_hub.ModelCard`]):
            Its card.
        published ([`Published`]):
            What it holds.
    """

    uploads: dict[str, Path | bytes]
    deletions: list[str]
    card: ModelCard
    published: Published


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
    commit_message: str = "Publish the model",
) -> CommitInfo:
    r"""
    Publishes a checkpoint in one commit: whoever opens the model sees all of it or nothing. What the repository has
    already is not uploaded again. The card is

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
    with _saying_how_to_go_on(output_dir, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        published = read_published(api, repo_id, revision)
    plan = make_plan(output_dir, repo_id, published, evaluations, license=license, new_card=new_card)
    with _saying_how_to_go_on(output_dir, repo_id):
        commit = api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationDelete(path) for path in plan.deletions),
                *(CommitOperationAdd(path, content) for path, content in plan.uploads.items()),
            ],
            commit_message=commit_message,
            revision=revision,
            # If somebody else commits meanwhile, the plan is void.
            parent_commit=published.commit,
        )
    write_card(output_dir, plan.card)
    return commit


def read_published(api: HfApi, repo_id: str, revision: str | None) -> Published:
    """What is on the Hub now; nothing, where the repository or the branch does not exist."""
    try:
        commit = api.model_info(repo_id, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return NOTHING
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    files = {file.path: file for file in tree if isinstance(file, RepoFile)}
    card = None
    if CARD in files:
        card = ModelCard.load(api.hf_hub_download(repo_id, CARD, revision=commit))
    return Published(commit, files, card)


def make_plan(
    output_dir: Path,
    repo_id: str,
    published: Published,
    evaluations: Sequence[Evaluation] = (),
    *,
    license: str | None = None,
    new_card: bool = False,
) -> Plan:
    """What a commit has to do. Arguments as of [`publish`]."""
    is_same_model = published.weights == {path.name: _sha256(path) for path in weight_files(output_dir)}
    figures = [figure for evaluation in evaluations for figure in evaluation.figures]
    card = None if new_card else edited_card(output_dir)
    if card is None and is_same_model and not new_card:
        card = published.card
    if card is None:
        card = make_card(output_dir, repo_id, figures, license)

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
    for path, entries in eval_result_entries(figures).items():
        uploads[path] = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()
    uploads[CARD] = text.encode()
    deletions = []
    if published.weights and not is_same_model:
        old = [path for path in published.files if any(fnmatch(path, pattern) for pattern in OF_THE_WEIGHTS)]
        deletions = [path for path in old if path not in uploads]
    return Plan(uploads, deletions, card, published)


def describe(plan: Plan, output_dir: Path) -> str:
    """What a dry run shows."""
    lines = []
    for path, content in sorted(plan.uploads.items()):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if plan.published.has(path, content):
            state = "is there"
        else:
            state = "replaces" if path in plan.published.files else "new"
        lines.append(f"  {state:>8}  {size:>13,}  {path}")
    lines += [f"   deleted  {plan.published.files[path].size:>13,}  {path}" for path in plan.deletions]
    return "\n".join([*lines, f"  left out: {', '.join(left_out(output_dir)) or 'nothing'}"])


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _saying_how_to_go_on(output_dir: Path, repo_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet share no base class
        raise PublishError(_how_to_go_on(error, output_dir, repo_id)) from error


def _how_to_go_on(error: Exception, output_dir: Path, repo_id: str) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    again = f"run the same command again (after a training: python model_cards/publish.py {output_dir} {repo_id})"
    if status in (401, 403):
        return (
            f"The Hub does not let this token write to {repo_id} (status {status}). Log in with `hf auth login`, or set "
            f"HF_TOKEN to a token with write permission, then {again}."
        )
    if status == 412:
        return f"Somebody else has changed {repo_id} meanwhile, so nothing was published. To build on that, {again}."
    cause = f": {error.__cause__}" if error.__cause__ is not None and str(error.__cause__) not in str(error) else ""
    return (
        f"{repo_id} was not published: {error}{cause}\nFiles already uploaded wait on the Hub, out of sight until the "
        f"commit that comes last. To go on with what is missing, {again}."
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Publish a checkpoint on the Hub, or what a later run adds to it.")
    parser.add_argument("output_dir", type=Path, help="the checkpoint's folder, at best a training's output folder")
    parser.add_argument("repo_id", help="where to: user/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to publish to, created if it is not there (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be uploaded")
    parser.add_argument("--new_card", action="store_true", help="write the card anew, whatever card there is")
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    card = {"license": args.license, "new_card": args.new_card}
    try:
        check_checkpoint(args.output_dir)
        evaluations = read_all_results(args, [str(args.output_dir), args.repo_id])
        if args.dry_run:
            try:
                published = read_published(HfApi(), args.repo_id, args.revision)
            except Exception as error:  # as in publish
                print(f"The Hub cannot be asked what is there already: {error}", file=sys.stderr)
                published = NOTHING
            plan = make_plan(args.output_dir, args.repo_id, published, evaluations, **card)
            print(f"{args.repo_id} would be published with\n{describe(plan, args.output_dir)}")
            return
        commit = publish(
            args.output_dir,
            args.repo_id,
            private=args.private,
            revision=args.revision,
            evaluations=evaluations,
            **card,
        )
    except (ValueError, PublishError) as error:
        sys.exit(f"error: {error}")
    print(f"Published: {commit.commit_url}")


if __name__ == "__main__":
    main()
