"""Publishes a Space in which people try a model. It is the page of model_cards/space, which opens this model there."""

import json
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, SpaceCard

from ..data.images import list_images
from ..package_files import PACKAGE, package_file
from .card import CARD
from .publish import Published, PublishError, commit, patiently, read_published, saying_how_to_go_on


PAGE = package_file("model_cards/space")
# Two files of the package go along. An import finds them by their paths, and without an __init__.py they need no others.
CODE = {name: PAGE / name for name in ("app.py", "answers.py", "checkpoint.py", "requirements.txt")} | {
    f"{PACKAGE.name}/{name}": PACKAGE / name for name in ("data/images.py", "evaluation/ranking.py")
}
CHECKPOINT = "checkpoint.json"
# What the page needs beside its requirements.txt, by the type of the vision tower. timm brings torchvision along.
PACKAGES = {"timm_wrapper": "timm", "dinov3_vit": "torchvision", "dinov3_convnext": "torchvision"}


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
    Creates or updates the Space of a published model in one commit. The Space has the model's name.

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder.
        repo_id (`str`):
            The model on the Hub, `user/name`.
        images (`str` or `Path`, *optional*):
            Images to compare with, in one subfolder for each class. They replace the images of the Space, which stay by
            default.
        license (`str`, *optional*):
            The Hub's identifier of the model's licence.
        private (`bool`, *optional*):
            Whether a new Space is private. By default it is if the model is.
        revision (`str`, *optional*, defaults to `"main"`):
            The model's branch. The Space has only one.
        token (`str`, *optional*):
            A token with write permission. Default: that of `hf auth login` or `HF_TOKEN`.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`: there are no images in the subfolders of `images`.
        [`PublishError`]: the Hub did not take the commit, or the Space holds another app.
    """
    output_dir, api = Path(output_dir), HfApi(token=token)
    with saying_how_to_go_on(output_dir, repo_id, "the Space "):
        if private is None:
            private = patiently(lambda: api.model_info(repo_id)).private
        options = {"repo_type": "space", "space_sdk": "gradio", "private": private, "exist_ok": True}
        space = patiently(lambda: api.create_repo(repo_id, **options))
        repo_id = space.repo_id
        published = read_published(api, repo_id, repo_type="space")
    uploads, deletions = plan_space(output_dir, repo_id, published, images=images, license=license, revision=revision)
    with saying_how_to_go_on(output_dir, repo_id, "the Space "):
        options = {"commit_message": "Publish the page", "parent_commit": published.commit}
        return commit(api, repo_id, uploads, deletions, repo_type="space", **options)


def plan_space(
    output_dir: Path,
    repo_id: str,
    published: Published,
    *,
    images: str | Path | None = None,
    license: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, Path | bytes], list[str]]:
    """What to upload, by path, and which paths to delete. The arguments are those of [`publish_space`]."""
    is_update = CHECKPOINT in published.files
    if "app.py" in published.files and not is_update:
        raise PublishError(
            f"The Space {repo_id} holds another app, which stays. Rename it, or leave out --with_space."
        )
    # A Space that is there already keeps its title, colours and text.
    new_card = SpaceCard.load(PAGE / CARD)
    new_card.data.title = f"Try {repo_id.split('/')[-1]}"
    card = published.card if is_update and published.card is not None else new_card
    for name in ("sdk", "sdk_version", "python_version", "app_file"):
        card.data[name] = new_card.data[name]
    card.data.models, card.data.license = [repo_id], license or card.data.get("license")

    config = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    # The arguments of the page's Checkpoint. Only the code of the model that the Space is published with is trusted.
    checkpoint = {"name": repo_id, "revision": revision, "trust_remote_code": "auto_map" in config}
    uploads: dict[str, Path | bytes] = {**CODE, CARD: str(card).encode()}
    uploads[CHECKPOINT] = (json.dumps(checkpoint, indent=2) + "\n").encode()
    if (package := PACKAGES.get(config.get("vision_config", {}).get("model_type"))) is not None:
        uploads["requirements.txt"] = CODE["requirements.txt"].read_bytes() + f"{package}\n".encode()
    if images is None:
        return uploads, []
    uploads |= {f"images/{path.relative_to(images).as_posix()}": path for path in space_images(images)}
    return uploads, [path for path in published.files if path.startswith("images/") and path not in uploads]


def space_images(folder: str | Path) -> list[Path]:
    """The images in the subfolders of a folder. Raises a `ValueError` if there are none."""
    images = list_images(Path(folder))
    if not images:
        raise ValueError(f"{folder} has no images in subfolders. Each class needs one, as in {folder}/dog/1.jpg.")
    return images
