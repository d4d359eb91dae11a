"""What the machines of one training share: the network on which their processes meet, and perhaps a disk."""

import ipaddress
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, get_int_from_env
from transformers import PreTrainedModel


T = TypeVar("T")

# Network disks may show a new file late.
SECONDS_TO_APPEAR = 15
# What the launchers that accelerate knows call the number of processes of a machine.
LOCAL_SIZES = ["LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"]
# An address that is kept for examples, so that only the way out of this machine leads there.
ELSEWHERE = "192.0.2.1"


def use_network_of_master() -> None:
    """
    Has gloo use the network on which the processes of several machines meet, unless `GLOO_SOCKET_IFNAME` names one. By itself
    it takes the address of the machine's own name. Debian and Ubuntu make that 127.0.1.1, where no other machine reaches it.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if get_int_from_env(LOCAL_SIZES, num_processes) >= num_processes or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    # On the first machine, the name of the master may be a loopback as well.
    for host in (os.environ.get("MASTER_ADDR"), socket.gethostname(), ELSEWHERE):
        if host is not None and (name := _network_towards(host)) is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def _network_towards(host: str) -> str | None:
    """The interface from which a machine is reached, unless that is the loopback."""
    with suppress(OSError):  # no such name, or no way there
        address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(*address[:3]) as way:
            way.connect(address[4])  # sends nothing
            own_address = way.getsockname()[0]
        if not ipaddress.ip_address(own_address).is_loopback:
            for name, addresses in psutil.net_if_addrs().items():
                if own_address in [address.address for address in addresses]:
                    return name
    return None


def num_machines() -> int:
    """How many machines take part. All processes call this."""
    return sum(gather_object([PartialState().is_local_main_process]))


def in_all_or_none(check: Callable[[], T]) -> T:
    """
    What `check` returns. All processes call this: where it raises a `ValueError` or an `OSError` in one of them, all of them
    raise a `ValueError` of that message, and none is left waiting for the others.
    """
    result = problem = None
    try:
        result = check()
    except (ValueError, OSError) as error:
        problem = str(error)
    problems = [problem for problem in gather_object([problem]) if problem is not None]
    if problems:
        raise ValueError(problems[0])
    return result


def check_output_folder_of_machines(output_dir: str | Path, save_on_each_node: bool) -> None:
    """
    Refuses an output folder that several machines do not share, or with `save_on_each_node` one that they do. All processes
    call this.
    """
    if num_machines() == 1:
        return
    state = PartialState()
    mark = Path(output_dir, f".{broadcast_object_list([uuid.uuid4().hex])[0]}")

    def make() -> None:
        if state.is_local_main_process:
            mark.parent.mkdir(parents=True, exist_ok=True)
        if state.is_main_process:
            mark.touch()

    in_all_or_none(make)
    is_other = state.is_local_main_process and not state.is_main_process
    patience = 0 if save_on_each_node else SECONDS_TO_APPEAR
    num_seen = sum(gather_object([is_other and _appears(mark, patience)]))
    num_others = sum(gather_object([is_other]))
    if state.is_main_process:
        mark.unlink()
    if save_on_each_node and num_seen > 0:
        raise ValueError(
            f"The output folder {output_dir} is on a disk that several machines share, where they would overwrite each other's "
            "checkpoints: leave out `--save_on_each_node`."
        )
    if not save_on_each_node and num_seen < num_others:
        raise ValueError(
            f"The output folder {output_dir} of the first machine is not there on {num_others - num_seen} other(s). Take a "
            "folder on a disk that all machines share, or let each keep checkpoints of its own, `--save_on_each_node`."
        )


def _appears(path: Path, patience: float) -> bool:
    end = time.monotonic() + patience
    # Listing a folder asks the disk, where opening the file may ask a cache.
    while path.name not in os.listdir(path.parent):
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
