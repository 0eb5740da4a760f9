"""How many frames of a batch have labels of each task, and the tasks' means over these frames."""

from dataclasses import dataclass

from torch import Tensor

from gatesearch.training.split_data import LABELLED, Batch


@dataclass(frozen=True)
class LabelCounts:
    """Counts of the labelled frames of a batch of which some frame lacks labels of some task.

    Attributes:
        frames: B, frames of the batch.
        labelled: (T,) float64 on the processor, how many of them have labels of each task.
        processes: How many processes share the batch; means over them must be means over its
            frames.
    """

    frames: int
    labelled: Tensor
    processes: int = 1

    @property
    def present(self) -> Tensor:
        """(T,) bool on the processor: the tasks of which any frame of the batch has labels."""
        return self.labelled > 0

    def shares(self, part: Batch) -> Tensor:
        """Compute the weight of a part's loss in each task's mean over the batch.

        With n_t of the N_t labelled frames of task t in the part, and R processes, that is
        n_t R / N_t, 0 for an absent task. Over the parts of one process the weights need not add
        up to 1, but their mean over the processes does.

        Args:
            part: A part of the batch, or of a process's slice of it.

        Returns:
            (T,) float64 on the processor.
        """
        count = part[LABELLED].sum(0).double().cpu()
        return count * self.processes / self.labelled.clamp(min=1)


def count_labels(batch: Batch, *, processes: int = 1) -> LabelCounts | None:
    """Count the labelled frames of each task; None if every frame has labels of every task.

    Args:
        batch: The batch of all processes.
        processes: How many processes share it.
    """
    if LABELLED not in batch or bool(batch[LABELLED].all()):
        return None
    labelled = batch[LABELLED]
    return LabelCounts(len(labelled), labelled.sum(0).double().cpu(), processes)
