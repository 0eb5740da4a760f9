"""Networks of some tasks alone, cut out of exported ones or of ones that are to be exported."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.export.formats import write_network
from gatesearch.export.reader import read_exported, read_model
from gatesearch.export.shipped import Card
from gatesearch.pruning import CompactNet, subnetwork
from gatesearch.pruning.subnetwork import known_tasks


def cut_to_tasks(network: nn.Module, card: Card, tasks: Sequence[str]) -> tuple[CompactNet, Card]:
    """Cut out of a network what the outputs of some tasks need.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        card: Its card.
        tasks: Some of its tasks.

    Returns:
        (the subnetwork, its card: that of the network, with the tasks in its name, and with their
        outputs and costs alone).

    Raises:
        UsageError: An unknown task, or a network of which no part can be cut out.
    """
    chosen = known_tasks(tasks, card.tasks)
    check_can_be_cut(network, card.network)
    assert isinstance(network, CompactNet)
    part = subnetwork(network, chosen)
    cost = count_macs(part, (1, 3, *card.size), cross_check=False)
    changes = {
        "network": f"{card.network.partition(': ')[0]}: {', '.join(chosen)}",
        "gflops": cost.gflops,
        "params_m": cost.params_m,
        "tasks": {task: card.tasks[task] for task in chosen},
    }
    return part, card.model_copy(update=changes)


def check_can_be_cut(network: nn.Module, name: str) -> None:
    """Refuse a network that is not compact: what each of its outputs needs is not described.

    Args:
        network: The network.
        name: Its name, for the error.

    Raises:
        UsageError: It is refused.
    """
    if not isinstance(network, CompactNet):
        raise UsageError(
            "--tasks cuts compact networks, whose steps say which channels each output needs, "
            f"found {name}, a plain {type(network).__name__}; leave --tasks out, or take a "
            "network of another method, as a trial"
        )


def write_part(file: Path, tasks: Sequence[str], folder: Path) -> Path:
    """Write what some tasks need of an exported .safetensors, under its name into a folder.

    Raises:
        UsageError: It is no .safetensors, is damaged, or has no such task.
        DataError: It is missing.
    """
    if file.suffix != ".safetensors":
        raise UsageError(
            f"--tasks cuts the network of a .safetensors, found {file}; cut it when it is "
            "written: gatesearch export --tasks A,B"
        )
    card = read_model(file).card
    part, own = cut_to_tasks(read_exported(file), card, tasks)
    folder.mkdir(parents=True)
    write_network(part, own, folder / file.name, form="safetensors")
    return folder / file.name
