"""`import gatesearch` itself."""

import subprocess
import sys

import pytest

import gatesearch


def test_import_is_instant_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, gatesearch; gatesearch.delta_mtl, gatesearch.load_study; dir(gatesearch);"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_exported_name_is_there() -> None:
    for name in gatesearch.__all__:
        if name != "__version__":
            assert callable(getattr(gatesearch, name)), name
    assert set(gatesearch.__all__) <= set(dir(gatesearch))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'delta'"):
        _ = gatesearch.delta
