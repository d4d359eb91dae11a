"""Zero-shot accuracy at every evaluation of a training."""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import PreTrainedModel, ProcessorMixin

from .arguments import DataArguments
from .benchmarks import open_benchmark
from .embeddings import class_embeddings, image_features
from .evaluation_set import load_evaluation_set
from .zero_shot import zero_shot


class ZeroShotMetrics:
    """
    The `extra_metrics` of a [`CyCLIPTrainer`]: zero-shot accuracy on a labelled set, with its own prompt templates or the
    general ones. All processes call it and share the work. `name_or_path` is as of [`open_benchmark`]; `batch_size` and
    `num_workers` are those of each process.
    """

    def __init__(self, name_or_path: str, processor: ProcessorMixin, batch_size: int = 64, num_workers: int = 0):
        benchmark = open_benchmark(name_or_path)
        self.data = load_evaluation_set(benchmark, benchmark.split, DataArguments(name_or_path), labels_only=True)
        if self.data.class_names is None:
            raise ValueError(
                f"{self.data.name} has no class labels, which zero-shot classification needs: a column `label` or `cls`."
            )
        self.processor = processor
        self.batch_size = batch_size
        self.num_workers = num_workers

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        """`zero_shot_top1` and `zero_shot_mean_per_class`, in [0, 1]."""
        state, images = PartialState(), self.data.dataset["image"]
        features, broken = image_features(
            model, self.processor, images, self.batch_size, num_workers=self.num_workers, state=state
        )
        kept = torch.ones(len(features), dtype=torch.bool)
        kept[broken] = False
        image_embeds = F.normalize(features[kept], dim=-1)
        class_embeds = class_embeddings(model, self.processor, self.data.class_names, self.data.templates, state=state)
        measures = zero_shot(image_embeds, class_embeds, self.data.labels[kept], topk=(1,))
        return {f"zero_shot_{name}": measure.value for name, measure in measures.items()}
