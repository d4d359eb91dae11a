"""Whether a training, as it is set up, can memorise a few pairs: the first thing to know where nothing is learnt."""

from datasets import Dataset

from modeling_cyclip import CyCLIPTrainingArguments


# The nano ViT of recipes/emoji.yaml finds all of 64 pairs after 300 steps.
STEPS = 300
# All but a few of the pairs are found in their batch.
MEMORISED_RECALL = 0.95


def set_up_overfit_check(train_dataset: Dataset, num_pairs: int, training_args: CyCLIPTrainingArguments) -> Dataset:
    """
    The pairs of the check, the first N or all there are. Turns the arguments into those of the check: the pairs in one
    batch where they fit, `STEPS` steps or the `--max_steps` given, a warm-up that fits into them, and nothing evaluated,
    saved or published.

    Raises:
        `ValueError`: fewer pairs than processes, or a single one.
    """
    pairs = train_dataset.select(range(min(num_pairs, len(train_dataset))))
    if len(pairs) < max(2, training_args.world_size):
        raise ValueError(
            f"--overfit_check needs two pairs, and one for each of {training_args.world_size} processes; there are "
            f"{len(pairs)}."
        )
    training_args.per_device_train_batch_size = min(
        training_args.per_device_train_batch_size, len(pairs) // training_args.world_size
    )
    if training_args.max_steps < 1:
        training_args.max_steps = STEPS
    training_args.warmup_steps = min(training_args.warmup_steps, training_args.max_steps // 10)
    training_args.logging_steps = max(1, training_args.max_steps // 20)
    training_args.eval_strategy = training_args.save_strategy = "no"
    training_args.load_best_model_at_end = training_args.push_to_hub = False
    return pairs


def overfit_report(log_history: list[dict[str, float]]) -> tuple[bool, str]:
    """Whether the pairs were memorised by the last log, and the words for it."""
    last = [log for log in log_history if "contrastive_loss" in log][-1]
    recall = min(last["image_to_text_recall@1"], last["text_to_image_recall@1"])
    found = (
        f"after {last['step']} steps the recall@1 within a batch is {100 * recall:.0f} %, the contrastive loss "
        f"{last['contrastive_loss']:.3f}, the loss {last['loss']:.3f}"
    )
    if recall >= MEMORISED_RECALL:
        return True, f"Overfit check passed: {found}. The model can memorise these pairs; more pairs can teach it."
    return False, (
        f"Overfit check failed: {found}. The model does not memorise these pairs. Look at the pairs themselves (equal "
        "images or captions cannot be told apart), then at --learning_rate, then at the cyclic weights: without them "
        "(--inmodal_cyclic_weight 0 --crossmodal_cyclic_weight 0) it should pass; --max_steps gives it more time."
    )
