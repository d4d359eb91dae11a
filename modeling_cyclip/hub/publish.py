"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit.

python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --dry_run
python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --license apache-2.0
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from .card import (
    CARD,
    edited_card,
    make_card,
    merge_results,
    write_card,
)
from .checkpoint_folder import check_checkpoint, published_files, sha256, weight_files
from .repository import (
    Published,
    commit,
    read_published,
    saying_how_to_go_on,
)
from .results import Evaluation, eval_result_entries, eval_results, merge_entries


# Files in the repository that belong to its weights: new weights must not stand beside those of others.
OF_THE_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", ".eval_results/*", "comparison/*", "evaluation/*", "plots/*", "runs/*",
)  # fmt: skip


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
    comparison: dict[str, Any] | None = None,
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
        comparison (`dict`, *optional*):
            Results of a comparison of objectives, from [`read_comparison`], for a new card.
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
    card = {"license": license, "new_card": new_card, "comparison": comparison}
    plan = make_plan(output_dir, repo_id, published, evaluations, **card)
    with saying_how_to_go_on(output_dir, repo_id):
        committed = commit(api, repo_id, plan.uploads, plan.deletions, published, commit_message, revision)
    write_card(output_dir, plan.card)
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
) -> Plan:
    """What a commit has to do. Arguments as of [`publish`]."""
    is_same_model = published.weights == {path.name: sha256(path) for path in weight_files(output_dir)}
    figures = [figure for evaluation in evaluations for figure in evaluation.figures]
    card = None if new_card else edited_card(output_dir)
    if card is None and is_same_model and not new_card:
        card = published.card
    if card is None:
        card = make_card(output_dir, repo_id, figures, license, comparison)

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
    return Plan(uploads, deletions, card, published)
