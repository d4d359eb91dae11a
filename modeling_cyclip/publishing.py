"""How a Trainer's model card and upload are handed in from outside: the library has neither."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from huggingface_hub import CommitInfo, HfApi


class PublishingMixin:
    r"""
    For a [`~transformers.Trainer`]: `create_model_card` and `push_to_hub` as transformers has them, until they are given.

    Args:
        write_model_card (`Callable`, *optional*):
            Writes the card of the model, given the output folder and what the model is called.
        publish (`Callable`, *optional*):
            Publishes the output folder, given its path and the repository, with `commit_message`, `private`, `revision`
            and `token`. A `hub_strategy` other than `end` still uploads the whole folder at every save besides, as
            transformers does.
    """

    write_model_card: Callable[[str, str], None] | None = None
    publish: Callable[..., CommitInfo] | None = None

    def create_model_card(self, *args, **kwargs) -> None:
        if self.write_model_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.write_model_card(self.args.output_dir, self.hub_model_id or self.args.output_dir)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        if self.publish is None:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        publish = partial(
            self.publish,
            self.args.output_dir,
            self.hub_model_id,
            commit_message=commit_message,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision if revision is None else revision,
            token=self.args.hub_token if token is None else token,
        )
        return publish() if blocking else HfApi().run_as_future(publish)
