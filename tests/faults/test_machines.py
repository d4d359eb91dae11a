"""Two machines, each with a disk of its own: what they do not share is refused, or each keeps checkpoints of its own."""

import os
import shutil
import socket

import psutil
import pytest
import torch.distributed as dist

from modeling_cyclip import CyCLIPModel, CyCLIPTrainer, CyCLIPTrainingArguments, machines
from modeling_cyclip.checkpoints import COMPLETE_MARKER, INCOMPLETE_MARKER
from modeling_cyclip.machines import check_output_folder_of_machines, in_all_or_none, use_network_of_master
from modeling_cyclip.resume import find_checkpoint
from tests.distributed import run_distributed


def make_trainer(model, processor, pairs, **options):
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
    return CyCLIPTrainer(CyCLIPModel(model.config), arguments, train_dataset=pairs, processing_class=processor)


def train(*arguments, resume_from_checkpoint=None, **options):
    trainer = make_trainer(*arguments, **options)
    trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    return trainer.model


def are_equal(model, other):
    return all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def refusal(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)


def only_on(rank, error):
    if dist.get_rank() == rank:
        raise error


def on_a_machine(rank, world_size, folder, *arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")  # the process group is there already
    machines.SECONDS_TO_APPEAR = 0
    disk = folder / f"disk{rank}"
    disk.mkdir()
    os.chdir(disk)
    found = {"not shared": refusal(train, *arguments)}
    found["failed"] = refusal(in_all_or_none, lambda: only_on(1, OSError("the disk is gone")))
    found["shared"] = refusal(check_output_folder_of_machines, folder / "shared", save_on_each_node=False)
    found["shared, each saves"] = refusal(check_output_folder_of_machines, folder / "shared", save_on_each_node=True)
    dist.barrier()
    found["marks"] = [path.name for path in folder.glob("shared/.*")]

    whole = train(*arguments, save_on_each_node=True)
    found["saved"] = are_equal(whole, CyCLIPModel.from_pretrained("out/checkpoint-3"))
    if rank == 1:  # it was lost before it had marked its newest checkpoint
        newest = disk / "out" / "checkpoint-3"
        (newest / COMPLETE_MARKER).rename(newest / INCOMPLETE_MARKER)
    dist.barrier()
    found["checkpoint"] = find_checkpoint(True, "out", save_on_each_node=True)
    found["resumed"] = are_equal(whole, train(*arguments, save_on_each_node=True, resume_from_checkpoint=True))
    found["named"] = refusal(train, *arguments, save_on_each_node=True, resume_from_checkpoint="out/checkpoint-9")

    if rank == 1:  # it was replaced
        shutil.rmtree("out")
    dist.barrier()
    found["replaced"] = refusal(find_checkpoint, True, "out", save_on_each_node=True)
    found["named, shared"] = refusal(find_checkpoint, "out/checkpoint-2", "out")
    trainer = make_trainer(*arguments, save_on_each_node=True)
    trainer.state.best_model_checkpoint = "out/checkpoint-1"
    trainer._load_best_model()
    found["best"] = are_equal(trainer.model, CyCLIPModel.from_pretrained(folder / "disk0/out/checkpoint-1"))
    return found


def test_each_machine_keeps_and_resumes_from_checkpoints_of_its_own(model, processor, pairs, tmp_path):
    for found in run_distributed(on_a_machine, 2, tmp_path, tmp_path, model, processor, pairs):
        assert "folder out of the first machine is not there on 1 other" in found["not shared"]
        assert found["failed"] == "the disk is gone"
        assert found["shared"] is None and "leave out `--save_on_each_node`" in found["shared, each saves"]
        assert found["marks"] == []
        assert found["saved"] and found["resumed"]
        assert found["checkpoint"] == "out/checkpoint-2"
        assert found["named"] == "There is no checkpoint out/checkpoint-9 to go on from."
        assert "begin anew: --overwrite_output_dir" in found["replaced"]
        assert "out/checkpoint-2 is not on every machine" in found["named, shared"]
        assert found["best"]


@pytest.fixture
def two_machines(monkeypatch):
    """The environment of a process of two machines, where gloo has not been told a network."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    return monkeypatch


def test_gloo_takes_the_network_of_the_first_machine(two_machines):
    found = [
        (name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        pytest.skip("this machine has no network")
    name, address = found[0]
    two_machines.setenv("MASTER_ADDR", address)
    use_network_of_master()
    assert os.environ["GLOO_SOCKET_IFNAME"] == name


def test_gloo_takes_no_loopback_between_machines(two_machines):
    two_machines.setattr(socket, "gethostname", lambda: "localhost")
    two_machines.setenv("MASTER_ADDR", "127.0.1.1")
    use_network_of_master()
    assert not os.environ.get("GLOO_SOCKET_IFNAME", "").startswith("lo")


@pytest.mark.parametrize("name, value", [("LOCAL_WORLD_SIZE", "2"), ("GLOO_SOCKET_IFNAME", "named")])
def test_gloo_is_left_alone_on_one_machine_and_where_it_was_told(two_machines, name, value):
    two_machines.setenv("MASTER_ADDR", "127.0.0.1")
    two_machines.setenv(name, value)
    use_network_of_master()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == (value if name == "GLOO_SOCKET_IFNAME" else None)
