"""The handler of modules that are kept whole."""

from collections.abc import Mapping
from typing import Any

from gatesearch.models.imported.builder import Builder, Handler
from gatesearch.models.imported.constants import entry
from gatesearch.models.imported.layout import CHANNEL_AXIS, View, permuted
from gatesearch.models.nodes import Opaque
from gatesearch.models.nodes.opaque import MODULES


def kept_whole(b: Builder, input: View, *arguments: Any, **keywords: Any) -> View:
    """Add a module that was marked by `gs.opaque`."""
    path, count = b.site.module, len(input.axes)
    numbers = [n for a in arguments for n in (a if isinstance(a, tuple) else (a,))]
    if keywords or len(b.shapes) != 1 or not all(isinstance(n, int) for n in numbers):
        raise b.refused("is kept whole, but takes more than one tensor and numbers, or gives more")
    last = not any(f.axis == CHANNEL_AXIS for f in input.axes[1])
    view = b.with_channels_on(input, count - 1 if last else 1)
    positions = view.axes[1:-1] if last else view.axes[2:]
    source = b.arranged(view, channels=view.axes[-1 if last else 1], positions=positions)
    module, key = b.opaque[path], f"{b.backbone}/{path}"
    MODULES[key] = module
    (shape,) = b.shapes
    node = Opaque(
        b.new_name(),
        source,
        view.channels,
        shape[-1 if last else 1],
        key,
        channels_last=last,
        arguments=tuple(tuple(a) if isinstance(a, tuple) else a for a in arguments),
    )
    weights = {
        f"module.{name}": entry(f"{path}.{name}", tensor)
        for name, tensor in module.state_dict().items()
    }
    value = b.value(b.add(node, weights))
    return permuted(value, [0, *range(2, count), 1]) if last else value


HANDLERS: Mapping[str, Handler] = {"module:opaque": kept_whole}
