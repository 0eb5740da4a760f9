"""`gatesearch bench`: measure how fast exported networks run here, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatesearch.cli.console import err, print_json, print_table
from gatesearch.cli.options import JsonOption, PluginOption, TasksOption, names, use_plugins
from gatesearch.errors import UsageError

if TYPE_CHECKING:
    from gatesearch.export import Timing

EXAMPLES = """Examples:

gatesearch bench --model small.safetensors mtl.safetensors stl.safetensors

gatesearch bench --model a.onnx --model b.onnx --batch 8 --json

gatesearch bench --model small.safetensors --runtime eager,compile --device cuda

gatesearch bench --model small.safetensors --tasks depth"""


def bench(
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE...",
            help="Exported networks: .safetensors, for every runtime, or .onnx, for onnxruntime.",
        ),
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="Further models.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images per run.")] = 1,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="R",
            help="eager, compile, onnxruntime; with commas or repeated. Default: all that can run "
            "the file.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="auto|cpu|cuda", help="Device to time on; onnxruntime only has cpu."),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Threads of the processor. Default: as torch chooses."
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0, max=3600, metavar="S", help="Seconds of measuring per network and runtime."
        ),
    ] = 2.0,
    tasks: TasksOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Measure latency, throughput and memory of exported networks, side by side.

    They are timed in turns, each in its own process, on random images of the size it was trained
    on. The ratio is to the first model in the same runtime. Memory is the peak growth of the
    process, on cuda the peak allocated on the device. FLOPs are 2 x multiply-adds for one image.
    """
    files = [*(model or []), *(more or [])]
    if not files:
        raise UsageError("bench needs a network or more, found none; name them: --model FILE...")
    runtimes = names(runtime, "--runtime") if runtime else ()
    alone = names(tasks, "--tasks") if tasks else ()

    use_plugins(plugin)

    from gatesearch.export import time_models

    timed = time_models(
        files,
        runtimes=runtimes,
        batch=batch,
        device=device,
        threads=threads,
        seconds=seconds,
        tasks=alone,
        tell=lambda message: err.print(message, markup=False, soft_wrap=True),
    )
    for row in timed.rows:
        if row.error:
            err.print(
                f"warning: {row.file} in {row.runtime}: {row.error}", style="yellow", markup=False
            )
    if json:
        print_json(
            {
                "batch": timed.batch,
                "device": timed.device,
                "threads": timed.threads,
                "rows": [_to_json(row) for row in timed.rows],
            }
            | ({"tasks": list(alone)} if alone else {})
        )
        return
    print_table(
        ["network", "file", "runtime", "size", "GFLOPs", "parameters (M)", "median (ms)",
         "p95 (ms)", "images/s", "memory (MiB)", "ratio"],
        [_cells(row) for row in timed.rows],
        numbers_from=3,
        title=f"batch of {timed.batch} on {timed.device}, {timed.threads} threads, FLOPs of one "
        "image = 2 x multiply-adds",
    )  # fmt: skip


def _to_json(row: "Timing") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "file": str(row.file),
        "network": row.card.network,
        "runtime": row.runtime,
        "gflops": row.card.gflops,
        "params_m": row.card.params_m,
        "size": list(row.card.size),
    } | (asdict(row.figures) if row.figures else {"error": row.error})


def _cells(row: "Timing") -> list[str]:
    from gatesearch.measures import shown_gflops

    height, width = row.card.size
    card = [row.card.network, str(row.file), row.runtime, f"{height} x {width}",
            shown_gflops(row.card.gflops), f"{row.card.params_m:,.3f}"]  # fmt: skip
    if row.figures is None:
        return [*card, "failed", "", "", "", ""]
    figures = row.figures
    return [
        *card,
        f"{figures.median_ms:,.2f}",
        f"{figures.p95_ms:,.2f}",
        f"{figures.images_per_second:,.1f}",
        f"{figures.memory_mib:,.0f}",
        "" if figures.ratio is None else f"{figures.ratio:.2f}",
    ]
