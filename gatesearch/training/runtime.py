"""Where and how numbers are computed: device, precision, memory format."""

import ctypes
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

MemoryFormat = Literal["nchw", "nhwc"]
_LAPS = 5


@dataclass(frozen=True)
class Runtime:
    """Device, precision and memory format of a network.

    Attributes:
        device: `cuda`, `mps` or `cpu`.
        precision: `bf16` runs forward passes under autocast; losses stay in fp32.
        memory_format: `nhwc` is channels-last.
        graphs: Whether training steps are recorded as CUDA graphs if all of them are alike.
    """

    device: str
    precision: Literal["fp32", "bf16"]
    memory_format: MemoryFormat
    graphs: bool = False

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory format."""
        model = model.to(self.device)
        return model.to(memory_format=self._format)

    def image(self, image: Tensor) -> Tensor:
        """Move an image batch to the device, in the memory format."""
        return image.to(self.device, non_blocking=True).contiguous(memory_format=self._format)

    def tensors(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled)

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.memory_format == "nhwc" else torch.contiguous_format


def resolve_runtime(precision: str, memory_format: str) -> Runtime:
    """Choose the runtime on this machine.

    Args:
        precision: `auto` is bf16 on CUDA devices and processors that multiply it natively.
        memory_format: `auto` is `nhwc` at first; see `measure_memory_format`.
    """
    _keep_freed_memory()
    device = "cpu"
    if torch.cuda.is_available():
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    if precision == "auto":
        native = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "mps": lambda: False,
            "cpu": _processor_has_bf16,
        }
        precision = "bf16" if native[device]() else "fp32"
    return Runtime(
        device=device,
        precision="bf16" if precision == "bf16" else "fp32",
        memory_format="nchw" if memory_format == "nchw" else "nhwc",
        graphs=device == "cuda",
    )


def measure_memory_format(
    build: Callable[[], nn.Module], shape: tuple[int, int, int, int], runtime: Runtime
) -> Runtime:
    """Return the runtime with the memory format whose training step is faster on this machine.

    Which one is faster depends on channels, size and precision, so it is measured on the network
    and batch of the study. Rounding differs between the two: keep the answer in the store.

    Args:
        build: Makes the network.
        shape: Shape of the image batch.
        runtime: Device and precision.
    """
    with torch.random.fork_rng():
        nchw = replace(runtime, memory_format="nchw")
        nhwc = replace(runtime, memory_format="nhwc")
        models = [candidate.place(build()) for candidate in (nchw, nhwc)]
        images = [candidate.image(torch.rand(shape)) for candidate in (nchw, nhwc)]
        # In turns, so that other work on the machine slows both down.
        laps = [
            [
                _step_seconds(model, image, candidate)
                for model, image, candidate in zip(models, images, (nchw, nhwc), strict=True)
            ]
            for _ in range(_LAPS)
        ]
    # The first lap allocates memory and kernels. Where neither is clearly faster, nhwc is taken.
    faster = sum(a < b for a, b in laps[1:]) == _LAPS - 1
    return nchw if faster else nhwc


def _step_seconds(model: nn.Module, image: Tensor, runtime: Runtime) -> float:
    model.zero_grad()
    start = time.perf_counter()
    with runtime.autocast():
        outputs = model(image)
    torch.stack([output.square().mean() for output in outputs.values()]).sum().backward()
    if runtime.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next step instead of returning them to the kernel.

    Otherwise every activation is mapped and zeroed afresh by the kernel, a third of the time of
    training a small network on a processor.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def _processor_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512"):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(
        torch.cpu._is_avx512_bf16_supported()
    )
