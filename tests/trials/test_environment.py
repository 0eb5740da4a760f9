"""What a result keeps of the software that it was trained with."""

import importlib.metadata
from types import SimpleNamespace

import gatesearch
from gatesearch.training import resolve_runtime
from gatesearch.trials.trial import _environment


def test_versions_of_packages_without_a_record_are_unknown(monkeypatch) -> None:
    """As in a source tree, a container or a program that was frozen: a training must not fail."""
    context = SimpleNamespace(
        study=gatesearch.load_study("scenes"), runtime=resolve_runtime("fp32", "nchw")
    )
    kept = _environment(context)
    names = ("torch", "torchvision", "optuna", "fvcore", "numpy")
    assert {name: kept[name] for name in names} == {
        name: importlib.metadata.version(name) for name in names
    }

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    without = _environment(context)
    assert without == {**kept, **dict.fromkeys(names, "unknown")}
    assert without["gatesearch"] == gatesearch.__version__
    assert list(without) == list(kept)
