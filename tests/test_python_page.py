"""The scripts of docs/python.md run, one after the other, in a folder of their own."""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
# Heading of a section -> package that its script needs beside gatesearch.
EXTRAS = {"In Lightning": "lightning", "In the Trainer of Hugging Face": "transformers"}


def scripts() -> dict[str, str]:
    """Heading -> code of its section."""
    found = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        code = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        assert len(code) == 1, heading
        found[heading] = code[0]
    return found


def run_scripts(headings: list[str]) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "page"}
    for heading in headings:
        exec(compile(scripts()[heading], f"{PAGE}, {heading}", "exec"), names)
    return names


def test_the_page_has_all_that_it_announces() -> None:
    headings = list(scripts())
    assert headings == [
        "A study as a dict", "A network in your own loop", "A search with your own training",
        "In Lightning", "In the Trainer of Hugging Face",
    ]  # fmt: skip
    for heading in headings[:2]:  # about forty lines each
        assert scripts()[heading].count("\n") <= 65, heading


@pytest.mark.slow("whole run")
def test_a_study_as_a_dict(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_scripts(["A study as a dict"])
    told = capsys.readouterr().out
    assert "unknown key 'training.epoch'; did you mean 'epochs'?" in told
    record, cost = names["record"], names["cost"]
    assert [trial.state for trial in record.trials] == ["complete", "complete"]
    assert cost.gflops == names["best"].gflops
    mtl = next(r for r in record.baselines if r.method == "mtl")
    assert 0.98 * 1.3 * mtl.gflops <= cost.gflops <= 1.3 * mtl.gflops
    assert set(record.trials[0].metrics) >= {"validation"}


@pytest.mark.slow("trains")
@pytest.mark.parametrize("last", [None, *EXTRAS])
def test_the_scripts_around_a_users_heads(tmp_path, monkeypatch, last) -> None:
    import torch

    from gatesearch import count_macs

    if last is not None and importlib.util.find_spec(EXTRAS[last]) is None:
        pytest.skip(f"{EXTRAS[last]} is not installed: pip install {EXTRAS[last]}")
    monkeypatch.chdir(tmp_path)
    headings = ["A network in your own loop", last or "A search with your own training"]
    with warnings.catch_warnings():
        if last is not None:  # other people's packages warn of what is theirs
            warnings.simplefilter("ignore")
        names = run_scripts(headings)
    trained = {None: "net", "In Lightning": "module", "In the Trainer of Hugging Face": "wrapped"}
    net = names[trained[last]]
    net = (net if last is None else net.net).eval().cpu()
    small, image = names["small"], torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = small(image), net(image)
    for task in ("mask", "radius"):
        assert torch.allclose(ours[task], theirs[task], rtol=2e-5, atol=2e-5)
    macs = count_macs(small, (1, 3, 64, 64)).macs
    budget = 1.3 * net.costs()["mtl"].macs
    assert 0.98 * budget <= macs <= budget
    if last is None:
        with torch.no_grad():
            assert torch.equal(names["again"](image)["mask"], ours["mask"])
        assert [t.state for t in names["record"].trials] == ["complete", "complete"]
