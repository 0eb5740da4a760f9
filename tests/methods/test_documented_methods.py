"""The method in docs/how-to/add-a-method.md is real: it is taken out of the page and searched."""

import re
from pathlib import Path

import pytest

from gatesearch.methods import METHODS, Method
from gatesearch.search.run import run
from tests.search.tiny import ignore, tiny

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"


def documented() -> Method:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    (method,) = [m for m in names.values() if isinstance(m, Method) and m.name not in METHODS]
    return method


@pytest.mark.slow("whole run")
def test_the_documented_method_is_searched(tmp_path, data, monkeypatch) -> None:
    method = documented()
    monkeypatch.setitem(METHODS, method.name, method)
    study = tiny(tmp_path, f'tune=["{method.name}"]', 'methods=["stl"]')
    record = run(study, n_trials=1, out=tmp_path / "out", data=data, emit=ignore)
    (trial,) = record.trials
    assert (trial.method, trial.state, trial.epochs) == (method.name, "complete", 2)
    assert set(trial.params) == set(method.space)
