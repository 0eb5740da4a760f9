"""Latency of compact networks of imported ones against their FLOPs, at half of the gates.

As `compact`, in torch and in onnxruntime; ratios are to the single-task networks as they ship. Half
of each layer's gates is on: drawn at random, aligned between tasks (`interrogate.align`), or drawn
at random with a shared stream that continues from itself (`interrogate.mix = "shared"`).
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

import gatesearch as gs
from benchmarks.compact import some_on
from benchmarks.figure import Figure, in_turns
from benchmarks.imported_step import NETWORKS, imported_study
from gatesearch.models import GatedSupernet
from gatesearch.training import resolve_runtime

BAR = 1.10
# Name, what the shared stream continues from, whether gates are aligned.
LAYOUTS = (
    ("random", "tasks", False),
    ("aligned", "tasks", True),
    ("random, nothing mixed", "shared", False),
)
SIZE = (224, 224)
ROUNDS = 15


def measure() -> list[Figure]:
    torch.set_num_threads(1)  # processor time of one thread can be compared on a busy machine
    figures = []
    for name in NETWORKS:
        shape = (1, 3, *SIZE)
        for layout, mix, align in LAYOUTS:
            study = imported_study(name, size=SIZE, mix=mix)
            supernet = gs.build_model(study, "interrogate")
            assert isinstance(supernet, GatedSupernet)
            all_on = {node: torch.ones_like(gates) for node, gates in supernet.hard_gates().items()}
            whole = _extracted(supernet, all_on)
            ours = _extracted(supernet, some_on(supernet, 0.5, multiple=1, align=align))
            flops = gs.count_macs(ours, shape).macs / gs.count_macs(whole, shape).macs
            networks = ours, whole
            for where, bar, (compact, single) in (
                ("torch, nchw", BAR, [_in_torch(x, shape, "nchw") for x in networks]),
                ("onnxruntime, nchw", BAR, [_in_onnxruntime(x, shape) for x in networks]),
                ("torch, nhwc", None, [_in_torch(x, shape, "nhwc") for x in networks]),
            ):
                ratio, a, b = in_turns(compact, single, rounds=ROUNDS, clock=time.process_time)
                detail = f"{1e3 * a:.1f} ms / {1e3 * b:.1f} ms = {ratio:.3f}, FLOPs {flops:.3f}"
                label = f"{name}, {layout}, {where}"
                figures.append(Figure(label, ratio / flops, bar, "x", detail))
    return figures


def _extracted(supernet: GatedSupernet, gates: dict[str, torch.Tensor]) -> nn.Module:
    supernet.set_gates(gates)
    return gs.extract(supernet)


def _in_torch(network: nn.Module, shape: tuple[int, ...], layout: str) -> Callable[[], object]:
    runtime = resolve_runtime("fp32", layout)
    image = runtime.image(torch.rand(shape))
    return partial(_run, runtime.place(network), image)


@torch.inference_mode()
def _run(network: nn.Module, image: torch.Tensor) -> object:
    return network(image)


def _in_onnxruntime(network: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    import onnxruntime

    class Outputs(nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(network(image).values())

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "network.onnx"
        image = torch.rand(shape)
        network.to(memory_format=torch.contiguous_format)
        torch.onnx.export(Outputs().eval(), (image,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {session.get_inputs()[0].name: image.numpy()})
