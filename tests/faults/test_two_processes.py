"""Two processes whose shares are uneven: evaluation without a rest; broken images named once, replaced as in one process."""

import logging
import os

import pytest
from datasets import concatenate_datasets

from modeling_cyclip import CyCLIPTrainer, CyCLIPTrainingArguments
from tests.distributed import run_distributed


BROKEN = range(1, 32, 3)


def evaluate_and_train(model, processor, train_dataset, eval_dataset, output_dir, batch_size, ddp_backend=None):
    """The metrics, the rows found broken, the warnings, the rows of each step, and the numbers of its log."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("modeling_cyclip.data.samples").addHandler(handler)
    arguments = CyCLIPTrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        num_train_epochs=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        ddp_backend=ddp_backend,
    )
    trainer = CyCLIPTrainer(
        model, arguments, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=processor
    )
    metrics = trainer.evaluate()
    trainer.train()
    steps = []
    for epoch in range(2):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        steps += [trainer.accelerator.gather(batch["sample_index"]).tolist() for batch in loader]
    logs = [[log["loss"], log["grad_norm"]] for log in trainer.state.log_history if "loss" in log]
    return metrics, dict(trainer.broken_images), records, steps, logs


def one_of_two(rank, world_size, *arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # the process group is there already
    return evaluate_and_train(*arguments, ddp_backend="gloo")


def test_evaluation_then_training_with_uneven_shares_is_that_of_one_process(model, processor, pairs, tmp_path):
    train_dataset = pairs.map(
        lambda row, index: {"image": {"bytes": b"no image", "path": None} if index in BROKEN else row["image"]},
        with_indices=True,
    )
    # The last batch holds 5 pairs of 8, which two processes cannot share; a broken image stands in it as well.
    eval_dataset = concatenate_datasets([pairs.select(range(28)), train_dataset.select([28])])
    arguments = model, processor, train_dataset, eval_dataset, tmp_path

    results = run_distributed(one_of_two, 2, tmp_path, *arguments, 4)
    expected_metrics, _, _, expected_steps, expected_logs = evaluate_and_train(*arguments, 8)

    for metrics, broken_images, _, steps, logs in results:
        for name in ("loss", "contrastive_loss", "inmodal_cyclic_loss", "crossmodal_cyclic_loss"):
            assert metrics[f"eval_{name}"] == pytest.approx(expected_metrics[f"eval_{name}"], rel=1e-5)
        assert set(broken_images) == set(BROKEN)
        # The processes' parts of a step follow one another.
        assert len(steps) == 8 and steps == expected_steps
        for actual, expected in zip(logs, expected_logs, strict=True):
            assert actual == pytest.approx(expected, rel=1e-3)
    warnings = [[warning.partition(" is left out")[0] for warning in result[2]] for result in results]
    assert sorted(warnings[0]) == sorted(
        ["Row 28 of the eval set", *(f"Row {row} of the training set" for row in BROKEN)]
    )
    assert warnings[1] == []
