"""Two machines, each with a disk of its own: what they do not share is refused, or each keeps checkpoints of its own."""

import os

import torch.distributed as dist

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments, machines
from modeling_cyclip.checkpoints import COMPLETE_MARKER, INCOMPLETE_MARKER
from modeling_cyclip.machines import check_shared_folder, has_other_machines, use_network_of_master
from modeling_cyclip.resume import find_checkpoint
from tests.distributed import run_distributed


def train(model, processor, pairs, resume_from_checkpoint=None, **options):
    arguments = CyCLIPTrainingArguments(
        output_dir="out",
        use_cpu=True,
        ddp_backend="gloo",
        per_device_train_batch_size=4,
        max_steps=3,
        save_steps=1,
        learning_rate=1e-3,
        warmup_steps=0,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    model = CyCLIPModel(model.config).train()
    trainer = CyCLIPTrainer(model, arguments, train_dataset=pairs, processing_class=processor)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return [parameter.detach().clone() for parameter in model.parameters()]


def on_a_machine(rank, world_size, folder, *arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # the process group is there already
    machines.SECONDS_TO_APPEAR = 0
    disk = folder / f"disk{rank}"
    disk.mkdir()
    os.chdir(disk)

    try:
        train(*arguments)
        refusal = None
    except ValueError as error:
        refusal = str(error)
    check_shared_folder(folder / "shared")

    whole = train(*arguments, save_on_each_node=True)
    if rank == 1:  # it was lost before it had marked its newest checkpoint
        newest = disk / "out" / "checkpoint-3"
        (newest / COMPLETE_MARKER).rename(newest / INCOMPLETE_MARKER)
    dist.barrier()
    found = find_checkpoint(True, "out", save_on_each_node=True)
    resumed = train(*arguments, save_on_each_node=True, resume_from_checkpoint=True)
    is_equal = all(map(lambda a, b: a.equal(b), whole, resumed))
    opened = CyCLIPModel.from_pretrained(disk / "out" / "checkpoint-3")
    is_saved = all(map(lambda a, b: a.equal(b), whole, opened.parameters()))
    try:
        train(*arguments, save_on_each_node=True, resume_from_checkpoint="out/checkpoint-9")
    except ValueError as error:
        missing = str(error)
    return refusal, found, is_equal, is_saved, missing, sorted(path.name for path in folder.glob("shared/.*"))


def test_each_machine_keeps_and_resumes_from_checkpoints_of_its_own(model, processor, pairs, tmp_path):
    for refusal, found, is_equal, is_saved, missing, marks in run_distributed(
        on_a_machine, 2, tmp_path, tmp_path, model, processor, pairs
    ):
        assert "output folder out of the first machine is not there on 1 other" in refusal
        assert "--save_on_each_node" in refusal
        assert found == "out/checkpoint-2"
        assert is_equal and is_saved
        assert "There is no checkpoint out/checkpoint-9" in missing
        assert marks == []


def test_gloo_takes_the_network_of_the_first_machine_where_there_are_others(monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "named")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    use_network_of_master()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "named"

    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not has_other_machines()
    use_network_of_master()
    assert "GLOO_SOCKET_IFNAME" not in os.environ

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    use_network_of_master()
    assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
