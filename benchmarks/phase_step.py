"""A training step of any phase of any method, as `Trainer` takes it, on a few random frames."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import gatesearch as gs
from benchmarks.loading import random_pack
from gatesearch.methods import Context, NetworkSpec, TrainedNetwork, TrainingRequest, check_study
from gatesearch.tasks import build_tasks
from gatesearch.training import SplitData, resolve_runtime
from gatesearch.training.split_data import Batch
from gatesearch.trials.phase_training import phases_of, trainer_of

State = Mapping[str, Tensor]


def random_context(folder: Path, *overrides: str) -> Context:
    """Make a run's context on random frames: 48 to train on, 8 to validate, in fp32."""
    study = check_study(gs.load_study("nyud-small", overrides=list(overrides)))
    pack, tasks = random_pack(study, folder / "random", train=56), build_tasks(study.tasks)
    size = study.protocol.size
    train, validation = (
        SplitData(pack, "train", indices=indices, tasks=tasks, size=size)
        for indices in (range(48), range(48, 56))
    )
    test = SplitData(pack, "test", indices=range(4), tasks=tasks, size=size)
    runtime = resolve_runtime("fp32", "nhwc")
    return Context(study, tasks, train, validation, test, runtime, data={})


class PhaseStep:
    """One step of a phase, again and again on the same batch.

    The phases before it begin, and are not trained.

    Args:
        context: Study and data.
        spec: Network of the phase.
        phase: Its name.
        start: State dict of the network that its training starts from.
        share: Share of the phase that is done at the step.
        turn: Of the phase's turns in an epoch, the one that the step is in.
        fix: Changes what the module has drawn for the step.
    """

    def __init__(
        self,
        context: Context,
        spec: NetworkSpec,
        phase: str,
        *,
        start: State | None = None,
        share: float = 0.9,
        turn: int = 0,
        fix: Callable[[nn.Module], None] = lambda module: None,
    ) -> None:
        begin = None if start is None else lambda: start
        request = TrainingRequest(spec, context, begin, lambda event: None)
        phases = {phase.name: phase for phase in phases_of(request)}
        network: TrainedNetwork | None = None
        for chosen in phases.values():
            network = chosen.begin(network)
            network.module = context.runtime.place(network.module)
            if chosen.name == phase:
                break
        assert network is not None
        self.module = network.module
        hooks = chosen.hooks(self.module)

        def before_step(done: float) -> None:
            if hooks.before_step is not None:
                hooks.before_step(done)
            fix(self.module)

        self.trainer = trainer_of(
            request, chosen, self.module, hooks=replace(hooks, before_step=before_step)
        )
        trainer = self.trainer
        self._stack = ExitStack()
        self._stack.enter_context(trainer.prepared())
        self.batch: Batch = next(iter(trainer.make_batches()))
        self.module.train()
        epochs = trainer.last_epoch - trainer.epochs_before
        turns_before = sum(trainer.turn_steps[:turn])
        self._done = int(share * epochs) * trainer.steps_per_epoch + turns_before

    def __call__(self) -> None:
        """Take the step."""
        self.trainer.state.progress.done = self._done
        self.trainer.step(self.batch, epoch=1)

    def close(self) -> None:
        """Free all parameters again."""
        self._stack.close()


def state_of(module: nn.Module) -> State:
    """Copy a state dict."""
    return {
        name: value.clone() if torch.is_tensor(value) else value
        for name, value in module.state_dict().items()
    }
