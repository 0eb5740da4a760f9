"""Networks: backbones as graphs, encoders, heads, gates, and the gated supernet.

How tasks share them is up to the methods (`gatesearch.methods`).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from gatesearch.errors import UsageError, unknown
from gatesearch.models.backbones import backbone_of
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.heads import HEADS, PER_IMAGE
from gatesearch.models.model_factory import HeadSpec, Parts, features_for
from gatesearch.study import Study
from gatesearch.tasks import Task, build_tasks

__all__ = ["GatedSupernet", "Parts", "graph_of", "parts_of"]


def graph_of(study: Study) -> Graph:
    """Build the study's encoder as a graph.

    Raises:
        UsageError: Unknown backbone.
    """
    return backbone_of(study.model, study.protocol.size).graph


def parts_of(
    study: Study,
    *,
    seed: int | None = None,
    stl: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> Parts:
    """Collect the encoders and heads that a study's networks are built from.

    Args:
        study: The definition.
        seed: Seed of the initial weights; the study's if None.
        stl: State dict of the trained single-task networks, to start from.
        pretrained: Whether to load the weights that `model.init = "pretrained"` asks for; not
            needed to count costs.

    Raises:
        UsageError: Unknown backbone or head, a head that does not fit its task, or a task with a
            name that no part of a network can have.
        DataError: The weights that `model.init` asks for cannot be fetched.
    """
    spec = study.model
    backbone = backbone_of(spec, study.protocol.size)
    graph = backbone.graph
    if spec.head not in HEADS:
        raise unknown("model.head", spec.head, HEADS)
    heads = {}
    taken = nn.ModuleDict()
    for name, task in build_tasks(study.tasks).items():
        if hasattr(taken, name):
            raise UsageError(
                f"a task cannot be named '{name}', which torch uses itself in a network; take "
                f"another name, as 'the_{name}'"
            )
        head = study.tasks[name].head or task.head or spec.head
        if head not in HEADS:
            raise unknown(f"tasks.{name}.head", head, HEADS)
        features = features_for(graph, HEADS[head])
        heads[name] = HeadSpec(head, graph.outputs, spec.head_channels, task.channels, features)
        _check_head(name, heads[name], study, task)
    seed = study.seed if seed is None else seed
    weights = None
    if pretrained and stl is None:
        trained = spec.init == "pretrained"
        weights = backbone.trained(spec.weights) if trained else backbone.initial(seed)
    return Parts(graph, heads, seed, weights, stl)


def _check_head(name: str, head: HeadSpec, study: Study, task: Task) -> None:
    """Refuse a head that predicts values per pixel for a task of whole images, or the reverse.

    Raises:
        UsageError: It does.
    """
    if task.dense == (head.kind not in PER_IMAGE):
        return
    what = "values per pixel" if task.dense else "one prediction per image"
    fitting = ", ".join(kind for kind in HEADS if task.dense == (kind not in PER_IMAGE))
    key = "model.head" if not (study.tasks[name].head or task.head) else f"tasks.{name}.head"
    raise UsageError(
        f"task {name} of kind '{study.tasks[name].kind}' needs a head of {what} ({fitting}), found "
        f"{key} = '{head.kind}'; set tasks.{name}.head"
    )
