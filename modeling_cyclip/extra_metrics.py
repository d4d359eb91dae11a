"""How metrics that the library cannot compute come into every evaluation of a Trainer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn
from torch.utils.data import Dataset
from transformers.trainer_utils import EvalLoopOutput


class ExtraMetricsMixin:
    r"""
    For a [`~transformers.Trainer`]: every evaluation has further metrics, with or without evaluation pairs. They are
    there before the metrics are logged and compared, so they serve as `metric_for_best_model`; what a callback adds in
    `on_evaluate` would come after the log.

    Args:
        extra_metrics (`Callable`, *optional*):
            Computes the metrics by name, without the prefix `eval`, given the model. Every process calls it.
    """

    extra_metrics: Callable[[nn.Module], dict[str, float]] | None = None
    _pending_metrics: Mapping[str, float] = MappingProxyType({})

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        # Each of several sets has an evaluation of its own, inside this one, that names the set.
        if self.extra_metrics is not None and eval_dataset is None:
            with self.compute_loss_context_manager():
                metrics = self.extra_metrics(self.model)
            self._pending_metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            if not self.eval_dataset:
                metrics = self._take_pending()
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
                return metrics
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        output.metrics.update(self._take_pending())
        return output

    def _take_pending(self) -> dict[str, float]:
        metrics, self._pending_metrics = dict(self._pending_metrics), {}
        return metrics
