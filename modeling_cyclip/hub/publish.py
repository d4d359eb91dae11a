"""Publishes a checkpoint on the Hub: model, processor, card, plots, logs and results, in one commit."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
    SpaceCard,
    eval_result_entries_to_yaml,
    parse_eval_result_entries,
)
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects, yaml_dump
from huggingface_hub.utils.sha import git_hash

from ..package_files import PACKAGE
from ..run_record import RUN_RECORD
from .card import (
    CARD,
    CURVE,
    check_checkpoint,
    edited_card,
    headlines,
    make_card,
    merge_results,
    sha256,
    weight_files,
    write_card,
)
from .outgoing import outgoing_json, outgoing_log
from .results import Evaluation, eval_result_entries, eval_results


# Only these files are published. Pickles (training_args.bin, optimizer states), checkpoint-* folders and whatever else lies
# in the folder stay there.
PUBLISHED = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer*.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "special_tokens_map.json", "added_tokens.json", RUN_RECORD,
    "trainer_state.json", "*_results.json", CURVE, "runs/**/events.out.tfevents.*",
)  # fmt: skip
# These are as large as a vocabulary, whose tokens may look like paths, and hold nothing else.
VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json")

# Of the plots of an evaluation, these show no image and no caption of the test set.
PLOTS_WITHOUT_DATA = ("confusion*", "class_*")

# These files in the repository belong to its weights. They must not stand beside new weights.
OF_THE_WEIGHTS = [
    "*.safetensors", "*.safetensors.index.json", ".eval_results/*", "comparison/*", "evaluation/*", "plots/*", "runs/*",
]  # fmt: skip


logger = logging.getLogger(__name__)

# The Hub is busy (503), or has had too many requests (429). huggingface_hub tries uploads again, but nothing else.
BUSY = (429, 503)
MAX_TRIES = 5
MAX_WAIT = 300  # seconds; who is to wait for longer learns that and starts anew


class PublishError(RuntimeError):
    """The Hub did not take what was to be published. The message says how to go on."""


@dataclass(frozen=True)
class Published:
    """What the repository holds at the revision that is published to."""

    commit: str | None  # the last one
    files: dict[str, RepoFile]  # by path
    card: ModelCard | SpaceCard | None
    eval_results: dict[str, list[EvalResultEntry]]  # the files .eval_results/*.yaml, by path

    def has(self, path: str, content: Path | bytes) -> bool:
        file = self.files.get(path)
        if file is None:
            return False
        if file.lfs is not None:
            return file.lfs.sha256 == sha256(content)
        return file.blob_id == git_hash(content if isinstance(content, bytes) else content.read_bytes())


NOTHING = Published(commit=None, files={}, card=None, eval_results={})


def read_published(api: HfApi, repo_id: str, revision: str | None = None, repo_type: str = "model") -> Published:
    """Reads what is on the Hub now: nothing, if the repository or the branch does not exist."""
    try:
        commit = patiently(lambda: api.repo_info(repo_id, revision=revision, repo_type=repo_type)).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return NOTHING
    tree = patiently(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)))
    files = {file.path: file for file in tree if isinstance(file, RepoFile)}

    def download(path: str) -> Path:
        return Path(api.hf_hub_download(repo_id, path, revision=commit, repo_type=repo_type))

    card_class = SpaceCard if repo_type == "space" else ModelCard
    card = card_class.load(download(CARD)) if CARD in files else None
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
    with_pictures: bool = False,
    card: ModelCard | None = None,
    commit_message: str = "Publish the model",
) -> CommitInfo:
    r"""
    Publishes a checkpoint in one commit, so that whoever opens the model sees all of it or nothing. What the repository
    already holds is not uploaded again. Unless `card` is given, the card is

    - the folder's README.md, if somebody has edited it since it was written or last published;
    - else the one on the Hub, if it belongs to the same weights. New results go into its metadata, and its text stays;
    - else a new one from [`make_card`].

    Args:
        output_dir (`str` or `Path`):
            The checkpoint's folder, preferably the output folder of its training.
        repo_id (`str`):
            The repository, `user/name`. It is created if it does not exist.
        private (`bool`, *optional*):
            Whether a new repository is private.
        revision (`str`, *optional*, defaults to `"main"`):
            The branch. It is created if it does not exist.
        token (`str`, *optional*):
            A token with write permission. Default: that of `hf auth login` or `HF_TOKEN`.
        evaluations (`Sequence[Evaluation]`, *optional*):
            Results of evaluation, from [`read_results`].
        license (`str`, *optional*):
            The Hub's identifier of the weights' licence, for a new card.
        new_card (`bool`, *optional*, defaults to `False`):
            Whether to write a new card, even if there is one to keep.
        comparison (`dict`, *optional*):
            Results of a comparison of objectives, from [`read_comparison`], for a new card.
        with_pictures (`bool`, *optional*, defaults to `False`):
            Whether to publish the plots of the evaluations that show images or captions of the test set, too.
        card ([`~huggingface_hub.ModelCard`], *optional*):
            The card to publish, whatever other card there is.
        commit_message (`str`, *optional*):
            The message of the commit.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`: the folder holds no whole checkpoint.
        [`PublishError`]: the Hub did not take the commit.
    """
    output_dir, api = Path(output_dir), HfApi(token=token)
    check_checkpoint(output_dir)
    with saying_how_to_go_on(output_dir, repo_id):
        repo_id = patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None and not revision.startswith("refs/"):
            patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        published = read_published(api, repo_id, revision)
    options = {"license": license, "new_card": new_card, "comparison": comparison, "card": card}
    options["with_pictures"] = with_pictures
    uploads, deletions, card = make_plan(output_dir, repo_id, published, evaluations, **options)
    options = {"commit_message": commit_message, "revision": revision, "parent_commit": published.commit}
    with saying_how_to_go_on(output_dir, repo_id):
        committed = commit(api, repo_id, uploads, deletions, **options)
    write_card(output_dir, card)
    return committed


def publish_checkpoint(
    output_dir: str | Path,
    checkpoint: str | Path,
    repo_id: str,
    *,
    resumed_from: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    **options: Any,
) -> Future[CommitInfo]:
    """
    Publishes a checkpoint of a training that goes on, in the background. It is copied into the training's folder, since
    it may be removed meanwhile. `resumed_from` names a folder of the repository for all that resuming needs; `options` are
    further ones of [`publish`].
    """
    output_dir, checkpoint, api = Path(output_dir), Path(checkpoint), HfApi(token=token)
    for path in published_files(checkpoint):
        shutil.copy(path, output_dir / path.relative_to(checkpoint))

    def job() -> CommitInfo:
        try:
            committed = publish(output_dir, repo_id, revision=revision, token=token, **options)
        except (PublishError, ValueError) as error:  # nobody waits for the result
            logger.warning(f"Of step {checkpoint.name.rpartition('-')[2]} nothing was published. {error}")
            raise
        if resumed_from is None:
            return committed
        uploads = {
            f"{resumed_from}/{path.name}": outgoing_json(path)
            if path.name in (RUN_RECORD, "trainer_state.json")
            else path
            for path in checkpoint.iterdir()
            if path.is_file() and path.name != "training_args.bin"
        }
        message = f"{options['commit_message']}, checkpoint"
        return commit(api, repo_id, uploads, [], commit_message=message, revision=revision)

    return api.run_as_future(job)


def make_plan(
    output_dir: Path,
    repo_id: str,
    published: Published,
    evaluations: Sequence[Evaluation] = (),
    *,
    license: str | None = None,
    new_card: bool = False,
    comparison: dict[str, Any] | None = None,
    with_pictures: bool = False,
    card: ModelCard | None = None,
) -> tuple[dict[str, Path | bytes], list[str], ModelCard]:
    """What to upload, by path, which paths to delete, and the card. The arguments are those of [`publish`]."""
    weights = {
        path: file.lfs.sha256 if file.lfs else file.blob_id
        for path, file in published.files.items()
        if fnmatch(path, "*.safetensors") and "/" not in path
    }
    is_same_model = weights == {path.name: sha256(path) for path in weight_files(output_dir)}
    of_this_model = published if is_same_model else NOTHING
    figures = [figure for evaluation in evaluations for figure in evaluation.figures]
    if not new_card:
        card = card or edited_card(output_dir) or of_this_model.card
    card = card or make_card(output_dir, repo_id, figures, license, comparison)

    metadata, text = card.data.to_dict(), card._content
    kept = [] if of_this_model.card is None else of_this_model.card.data.get("eval_results", [])
    merge_results(card, [*kept, *eval_results(headlines(figures))], model_name=repo_id.split("/")[-1])
    if card.data.to_dict() != metadata:
        text = str(card)
    # `cyclip card` writes the code samples for this folder, unless it is told the model's name on the Hub.
    text = text.replace(str(output_dir.resolve()), repo_id)

    uploads = outgoing_files(output_dir)
    for evaluation in evaluations:
        uploads |= {
            path: outgoing_json(content) if path.endswith(".json") else content
            for path, content in evaluation.files(repo_id).items()
            if with_pictures or not shows_data(path)
        }
    if comparison is not None:
        uploads["comparison/results.json"] = outgoing_json((json.dumps(comparison, indent=1) + "\n").encode())
    for path, entries in eval_result_entries(figures, of_this_model.eval_results).items():
        uploads[path] = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()
    uploads[CARD] = text.encode()
    deletions = []
    if weights and not is_same_model:
        old = filter_repo_objects(published.files, allow_patterns=OF_THE_WEIGHTS)
        deletions = [path for path in old if path not in uploads]
    return uploads, deletions, card


def published_files(output_dir: Path) -> list[Path]:
    """The files to publish, except for the card."""
    # The modelling files of a ResNet checkpoint. Other code in the folder is somebody's own.
    config = output_dir / "config.json"
    has_code = config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))
    code = [path.name for path in PACKAGE.glob("*.py")] if has_code else []
    return sorted({path for pattern in (*PUBLISHED, *code) for path in output_dir.glob(pattern) if path.is_file()})


def outgoing_files(output_dir: Path) -> dict[str, Path | bytes]:
    """The files to publish, except for the card, by path in the repository, without what they say of this machine."""
    files: dict[str, Path | bytes] = {}
    for path in published_files(output_dir):
        name = path.relative_to(output_dir).as_posix()
        if name.startswith("runs/"):
            # Such a file, and its folder, are named after the time and after this machine.
            time = path.name.split(".")[3]
            number = sum(other.startswith(f"runs/{time}/") for other in files)
            files[f"runs/{time}/events.out.tfevents.{time}.{number}"] = outgoing_log(path)
        elif path.suffix == ".json" and name not in VOCABULARY:
            files[name] = outgoing_json(path)
        else:
            files[name] = path
    return files


def shows_data(path: str | Path) -> bool:
    """Whether a file of an evaluation is a plot that may show images or captions of the test set."""
    name = Path(path).name
    return name.endswith(".png") and not any(fnmatch(name, pattern) for pattern in PLOTS_WITHOUT_DATA)


def left_out(output_dir: Path) -> list[str]:
    """What is not published: names of files and of whole folders."""
    published = {path.relative_to(output_dir).parts[0] for path in published_files(output_dir)}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in output_dir.iterdir()
        if path.name not in published and path.name != CARD and not path.name.startswith(".")
    )


def commit(
    api: HfApi, repo_id: str, uploads: Mapping[str, Path | bytes], deletions: Sequence[str], **options: Any
) -> CommitInfo:
    """
    Uploads and deletes in one commit. `options` are those of [`~huggingface_hub.HfApi.create_commit`]. With
    `parent_commit` nothing happens if somebody else commits meanwhile, since the plan does not hold then.
    """
    operations = [CommitOperationDelete(path) for path in deletions]
    operations += [CommitOperationAdd(path, content) for path, content in uploads.items()]
    return patiently(lambda: api.create_commit(repo_id, operations=operations, **options))


def patiently(ask: Callable[[], Any]) -> Any:
    """
    Asks the Hub up to five times while it is busy or a page comes in place of its answer. The waits are those that the Hub
    names, or else 1, 2, 4 and 8 seconds.
    """
    for number in range(1, MAX_TRIES + 1):
        try:
            return ask()
        except (HfHubHTTPError, json.JSONDecodeError) as error:
            wait, said = 2.0 ** (number - 1), "a page in place of an answer"
            if isinstance(error, HfHubHTTPError):
                if error.response.status_code not in BUSY:
                    raise
                wait, said = retry_after(error) or wait, f"status {error.response.status_code}"
            if number == MAX_TRIES or wait > MAX_WAIT:
                raise
            logger.warning(f"The Hub is busy ({said}). Retrying in {wait:.0f} seconds ({number} of {MAX_TRIES - 1}).")
            time.sleep(wait)


def retry_after(error: HfHubHTTPError) -> float | None:
    """The seconds to wait that an answer names, as a number or as a date; `None` without them."""
    told = (error.response.headers.get("Retry-After") or "").strip()
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


def describe(uploads: Mapping[str, Path | bytes], deletions: Sequence[str], published: Published) -> str:
    """The lines that a dry run shows."""
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
    """Turns any error of the Hub into a [`PublishError`]. `what` stands before the name: `"the Space "`."""
    try:
        yield
    except Exception as error:  # huggingface_hub, its HTTP client and hf_xet share no base class
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        again = f"run the same command again (after a training: cyclip publish {output_dir} {repo_id})"
        message = f"{what}{repo_id} was not published: {error}"
        if error.__cause__ is not None and str(error.__cause__) not in str(error):
            message += f": {error.__cause__}"
        if status in (401, 403):
            message = (
                f"The Hub does not let this token write to {what}{repo_id} (status {status}). Log in with `hf auth login`, "
                f"or set HF_TOKEN to a token with write permission, then {again}."
            )
        elif status in BUSY:
            wait = retry_after(error)
            message = f"The Hub is busy, so {what}{repo_id} was not published (status {status}). "
            message += f"In {wait:.0f} seconds, {again}." if wait else f"Later, {again}."
        elif status == 412:
            message = f"Somebody else has changed {what}{repo_id} meanwhile, so nothing was published. To build on that, {again}."
        elif isinstance(error, json.JSONDecodeError):
            message = (
                f"{what}{repo_id} was not published: a page came in place of the Hub's answer, as proxies and sign-in pages "
                f"give it. Later, {again}."
            )
        # A wrong name or wrong metadata (ValueError), or what the Hub refuses (4xx).
        elif isinstance(error, ValueError) or (status is not None and status < 500):
            message += "\nThis error stays until its cause is corrected."
        else:
            message += (
                "\nFiles already uploaded wait on the Hub, out of sight until the commit that comes last. To go on with "
                f"what is missing, {again}."
            )
        raise PublishError(message) from error
