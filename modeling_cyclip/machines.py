"""What the machines of one training share: the network on which their processes meet, and perhaps a disk."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel


# Network disks may show a new file late.
SECONDS_TO_APPEAR = 15


def has_other_machines() -> bool:
    """Whether the launcher has started processes of this training on other machines, too."""
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    return num_processes > int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))


def use_network_of_master() -> None:
    """
    Has gloo use the network on which the processes of several machines meet, unless `GLOO_SOCKET_IFNAME` names one. By itself
    it takes the address of the machine's own name. Debian and Ubuntu make that 127.0.1.1, where no other machine reaches it.
    """
    if not has_other_machines() or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError):  # without a way to that address, the process group says so
        address = socket.getaddrinfo(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], type=socket.SOCK_DGRAM)[0]
        with socket.socket(*address[:3]) as way:
            way.connect(address[4])  # sends nothing
            own_address = way.getsockname()[0]
        for name, addresses in psutil.net_if_addrs().items():
            if own_address in [address.address for address in addresses]:
                os.environ["GLOO_SOCKET_IFNAME"] = name


def check_shared_folder(output_dir: str | Path) -> None:
    """Refuses an output folder that is another one on another machine. All processes call this."""
    if not has_other_machines():
        return
    state = PartialState()
    mark = Path(output_dir, f".{broadcast_object_list([uuid.uuid4().hex])[0]}")
    if state.is_main_process:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    state.wait_for_everyone()
    is_missing = gather_object([state.is_local_main_process and not _appears(mark)])
    if state.is_main_process:
        mark.unlink()
    if any(is_missing):
        raise ValueError(
            f"The output folder {output_dir} of the first machine is not there on {sum(is_missing)} other(s). Take a folder on "
            "a disk that all machines share, or let each keep checkpoints of its own, `--save_on_each_node`."
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + SECONDS_TO_APPEAR
    # Listing a folder asks the disk, where opening the file may ask a cache.
    while not (path.parent.is_dir() and path.name in os.listdir(path.parent)):
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@contextmanager
def saving_on_each_machine(model: PreTrainedModel) -> Iterator[None]:
    """
    `save_pretrained` writes in each process that calls it with `is_main_process=True`. Of several that do, transformers 5.24
    has only the first one write, so that `--save_on_each_node` left the other machines without weights.
    """
    model.should_save_on_this_rank = bool
    try:
        yield
    finally:
        del model.should_save_on_this_rank
