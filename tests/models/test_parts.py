"""What networks are built from."""

import pytest

from gatesearch.errors import UsageError
from gatesearch.models import parts_of
from gatesearch.study import Study

PLAIN = {
    "name": "mine",
    "protocol": {"size": [8, 8]},
    "data": {"dataset": "scenes", "validation": 4},
    "training": {"epochs": 1},
}


@pytest.mark.parametrize("name", ["items", "type", "training", "forward"])
def test_a_name_that_torch_uses_itself_is_refused(name) -> None:
    study = Study(**PLAIN, tasks={name: {"kind": "depth"}})
    with pytest.raises(UsageError, match=f"a task cannot be named '{name}', .* as 'the_{name}'"):
        parts_of(study)
    assert parts_of(Study(**PLAIN, tasks={f"the_{name}": {"kind": "depth"}})).tasks
