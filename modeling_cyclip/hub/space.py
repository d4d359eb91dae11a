"""The Space beside a model, in which people try it: the page of model_cards/space, opening this model."""

import json
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, SpaceCard

from ..data.images import list_images
from ..package_files import PACKAGE, package_file
from .card import CARD
from .publish import Published, PublishError, commit, read_published, saying_how_to_go_on


PAGE = package_file("model_cards/space")
# The two files of the package lie where an import finds them; without an __init__.py they need nothing else of it.
CODE = {name: PAGE / name for name in ("app.py", "answers.py", "checkpoint.py", "requirements.txt")} | {
    f"{PACKAGE.name}/{name}": PACKAGE / name for name in ("data/images.py", "evaluation/ranking.py")
}
CHECKPOINT = "checkpoint.json"


def publish_space(
    output_dir: str | Path,
    repo_id: str,
    *,
    images: str | Path | None = None,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    r"""
    Creates or updates the Space of a published model, which has the model's name, in one commit.

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder.
        repo_id (`str`):
            The model on the Hub, `user/name`.
        images (`str` or `Path`, *optional*):
            Images to compare with, one subfolder a class. They replace those of the Space. Default: those stay.
        license (`str`, *optional*):
            The Hub's identifier of the model's licence.
        private (`bool`, *optional*):
            Whether a new Space is private. Default: as the model is.
        revision (`str`, *optional*, defaults to `"main"`):
            The model's branch. The Space has only one.
        token (`str`, *optional*):
            A token with write permission. Default: that of `hf auth login` or `HF_TOKEN`.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`: no images in the subfolders of `images`.
        [`PublishError`]: the Hub did not take it, or the Space holds another app.
    """
    output_dir, api = Path(output_dir), HfApi(token=token)
    with saying_how_to_go_on(output_dir, repo_id, "the Space "):
        if private is None:
            private = api.model_info(repo_id).private
        space = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        repo_id = space.repo_id
        published = read_published(api, repo_id, repo_type="space")
    uploads, deletions = plan_space(output_dir, repo_id, published, images=images, license=license, revision=revision)
    with saying_how_to_go_on(output_dir, repo_id, "the Space "):
        return commit(api, repo_id, uploads, deletions, published, "Publish the page", repo_type="space")


def plan_space(
    output_dir: Path,
    repo_id: str,
    published: Published,
    *,
    images: str | Path | None = None,
    license: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, Path | bytes], list[str]]:
    """What the Space shall hold, by path, and what no longer. Arguments as of [`publish_space`]."""
    if "app.py" in published.files and CHECKPOINT not in published.files:
        raise PublishError(
            f"The Space {repo_id} holds another app, which stays. Rename it, or leave out --with_space."
        )
    config = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    # The arguments of the page's Checkpoint. Only the code of the model that the Space is published with is trusted.
    checkpoint = {"name": repo_id, "revision": revision, "trust_remote_code": "auto_map" in config}
    uploads: dict[str, Path | bytes] = {**CODE}
    uploads[CHECKPOINT] = (json.dumps(checkpoint, indent=2) + "\n").encode()
    uploads[CARD] = str(_card(repo_id, published, license)).encode()
    if images is None:
        return uploads, []
    uploads |= {f"images/{path.relative_to(images).as_posix()}": path for path in space_images(images)}
    return uploads, [path for path in published.files if path.startswith("images/") and path not in uploads]


def space_images(folder: str | Path) -> list[Path]:
    r"""
    Raises:
        `ValueError`: no images in the subfolders.
    """
    images = list_images(Path(folder))
    if not images:
        raise ValueError(f"{folder} has no images in subfolders. One subfolder a class is needed: {folder}/dog/1.jpg.")
    return images


def _card(repo_id: str, published: Published, license: str | None) -> SpaceCard:
    """The Space's README.md; title, colours and text that it has already stay."""
    card = SpaceCard.load(PAGE / CARD)
    needed = {name: card.data[name] for name in ("sdk", "sdk_version", "python_version", "app_file")}
    if CHECKPOINT in published.files and published.card is not None:
        card = published.card
    else:
        card.data.title = f"Try {repo_id.split('/')[-1]}"
    for name, value in {**needed, "models": [repo_id], "license": license or card.data.get("license")}.items():
        card.data[name] = value
    return card
