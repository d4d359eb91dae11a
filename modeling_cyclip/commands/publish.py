"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit.

cyclip publish OUTPUT_DIR user/name --results results/results.json --dry_run
cyclip publish OUTPUT_DIR user/name --results results/results.json --license apache-2.0
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from ..hub.card import CARD, check_checkpoint, read_comparison
from ..hub.publish import (
    NOTHING,
    Published,
    PublishError,
    describe,
    left_out,
    make_plan,
    publish,
    read_published,
    shows_data,
)
from ..hub.space import plan_space, publish_space, space_images
from .card import add_card_arguments, read_all_results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Publish a checkpoint on the Hub, or what a later run adds to it.")
    parser.add_argument(
        "output_dir", type=Path, help="the checkpoint's folder, preferably the output folder of its training"
    )
    parser.add_argument("repo_id", help="the repository to publish to: user/name")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to publish to, created if it does not exist (default: main)")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be uploaded")
    parser.add_argument("--new_card", action="store_true", help="write a new card, even if there is one to keep")
    parser.add_argument(
        "--with_pictures", action="store_true",
        help="also publish the plots of --results that show images or captions of the test set",
    )  # fmt: skip
    parser.add_argument(
        "--with_space", action="store_true", help="also publish a Space in which people can try the model"
    )
    parser.add_argument(
        "--space_images", type=Path, help="images for the Space to compare with, in one subfolder for each class"
    )
    add_card_arguments(parser)
    args = parser.parse_args(argv)
    if args.space_images is not None and not args.with_space:
        parser.error("--space_images gives images for a Space: add --with_space")
    space = {"images": args.space_images, "revision": args.revision}
    try:
        check_checkpoint(args.output_dir)
        if args.space_images is not None:
            space_images(args.space_images)  # fails before anything is published
        model = {
            "evaluations": read_all_results(args, [str(args.output_dir), args.repo_id]),
            "comparison": read_comparison(args.comparison),
            "license": args.license,
            "new_card": args.new_card,
            "with_pictures": args.with_pictures,
        }
        if args.dry_run:
            published = _ask(args.repo_id, args.revision)
            uploads, deletions, card = make_plan(args.output_dir, args.repo_id, published, **model)
            print(f"{args.repo_id} would be published with\n{describe(uploads, deletions, published)}")
            print(f"  left out: {', '.join(left_out(args.output_dir)) or 'nothing'}")
            plots = [plot.name for evaluation in model["evaluations"] for plot in evaluation.plots if shows_data(plot)]
            if plots and args.with_pictures:
                print(f"  These plots show images or captions of the test set to everybody: {', '.join(plots)}")
            elif plots:
                print(f"  left out without --with_pictures, since they show the test set's data: {', '.join(plots)}")
            if args.with_space:
                published = _ask(args.repo_id, repo_type="space")
                space["license"] = card.data.get("license")
                uploads, deletions = plan_space(args.output_dir, args.repo_id, published, **space)
                print(f"The Space {args.repo_id} would be published with\n{describe(uploads, deletions, published)}")
            return
        committed = publish(args.output_dir, args.repo_id, private=args.private, revision=args.revision, **model)
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
    except Exception as error:  # as in saying_how_to_go_on
        print(f"The Hub cannot be asked what is there already: {error}", file=sys.stderr)
        return NOTHING


if __name__ == "__main__":
    main()
