"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit.

python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --dry_run
python model_cards/publish.py OUTPUT_DIR user/name --results results/results.json --license apache-2.0
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from model_cards.card import (
    CARD,
    add_card_arguments,
    edited_card,
    make_card,
    merge_results,
    read_all_results,
    read_comparison,
    write_card,
)
from model_cards.checkpoint_folder import check_checkpoint, left_out, published_files, sha256, weight_files
from model_cards.publish_space import plan_space, publish_space, space_images
from model_cards.repository import (
    NOTHING,
    Published,
    PublishError,
    commit,
    describe,
    read_published,
    saying_how_to_go_on,
)
from model_cards.results import Evaluation, eval_result_entries, eval_results, merge_entries


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Publish a checkpoint on the Hub, or what a later run adds to it.")
    parser.add_argument("output_dir", type=Path, help="the checkpoint's folder, at best a training's output folder")
    parser.add_argument("repo_id", help="where to: user/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to publish to, created if it is not there (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be uploaded")
    parser.add_argument("--new_card", action="store_true", help="write the card anew, whatever card there is")
    parser.add_argument(
        "--with_space", action="store_true", help="publish a Space beside it, in which to try the model"
    )
    parser.add_argument(
        "--space_images", type=Path, help="images for the Space to compare with, one subfolder a class"
    )
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    if args.space_images is not None and not args.with_space:
        parser.error("--space_images are for a Space: add --with_space")
    space = {"images": args.space_images, "revision": args.revision}
    try:
        check_checkpoint(args.output_dir)
        if args.space_images is not None:
            space_images(args.space_images)  # said before anything is published
        evaluations = read_all_results(args, [str(args.output_dir), args.repo_id])
        comparison = read_comparison(args.comparison)
        card = {"license": args.license, "new_card": args.new_card, "comparison": comparison}
        if args.dry_run:
            plan = make_plan(args.output_dir, args.repo_id, _ask(args.repo_id, args.revision), evaluations, **card)
            print(f"{args.repo_id} would be published with\n{describe(plan.uploads, plan.deletions, plan.published)}")
            print(f"  left out: {', '.join(left_out(args.output_dir)) or 'nothing'}")
            if args.with_space:
                published = _ask(args.repo_id, repo_type="space")
                space["license"] = plan.card.data.get("license")
                uploads, deletions = plan_space(args.output_dir, args.repo_id, published, **space)
                print(f"The Space {args.repo_id} would be published with\n{describe(uploads, deletions, published)}")
            return
        committed = publish(
            args.output_dir,
            args.repo_id,
            private=args.private,
            revision=args.revision,
            evaluations=evaluations,
            **card,
        )
        print(f"Published: {committed.commit_url}")
        if args.with_space:
            space["license"] = ModelCard.load(args.output_dir / CARD).data.get("license")
            repo_id = committed.repo_url.repo_id  # with the namespace, which may be left out
            committed = publish_space(args.output_dir, repo_id, private=args.private, **space)
            print(f"Published: {committed.repo_url}")
    except (ValueError, PublishError) as error:
        sys.exit(f"error: {error}")


def _ask(repo_id: str, revision: str | None = None, repo_type: str = "model") -> Published:
    try:
        return read_published(HfApi(), repo_id, revision, repo_type)
    except Exception as error:  # as in publish
        print(f"The Hub cannot be asked what is there already: {error}", file=sys.stderr)
        return NOTHING


if __name__ == "__main__":
    main()
