"""What holds for every method; a new one passes all of it, or is refused with the reason.

`tests/methods/test_new_method.py` shows what a method of your own costs.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pytest
import torch
from safetensors.torch import load_file

from gatesearch.errors import UsageError
from gatesearch.methods import (
    METHODS,
    Context,
    Method,
    NetworkSpec,
    Phase,
    TrainingRequest,
    build_model,
    check_study,
    start_of,
    training_of,
)
from gatesearch.methods.definitions import options_of
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.space import Choice, Range, check_first, space_of
from gatesearch.models.encoder import Encoder
from gatesearch.pruning import CompactNet, subnetwork
from gatesearch.results import Result
from gatesearch.search.space import draw
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.training import Checkpoints, Preempted
from gatesearch.trials.context import open_context
from gatesearch.trials.costs import costs
from gatesearch.trials.kept_networks import (
    MODEL,
    TENSORS,
    as_compact,
    kept_network,
    load_network,
    network_state,
)
from gatesearch.trials.phase_training import TrainingControls, phases_of
from gatesearch.trials.trial import train_network
from tests.methods.toys import (
    DEEP,
    assert_same_outputs,
    count_steps,
    parts,
    random_image,
    scattered,
)
from tests.methods.two_phases import TWO_PHASES
from tests.search.tiny import residual

# Those of the package, and the one that `test_new_method` adds.
every_method = pytest.mark.parametrize("name", [*METHODS, TWO_PHASES.name])
# Shares of the epochs so that every phase that a method has gets some.
PHASES = (
    *("training.epochs=4", "interrogate.warmup=0.25", "interrogate.finetune=0.25"),
    *("one_shot.warmup=0.25", "one_shot.finetune=0.25", "one_shot.statistics=2"),
    *("adashare.warmup=0.25", "dymu.finetune=0.25"),
)
# Methods whose heads read one map of the encoder alone.
ONE_MAP = {"adashare", "lomt", "ecmt", "dymu"}
# Encoders that a network of two tasks has, where it is not one per task.
ENCODERS = {
    **{"mtl": 1, "mtan": 1, "two_phases": 1, "den": 1, "adashare": 1, "gradsplit": 1},
    **{
        "interrogate": 3,
        "one_shot": 3,
        "ecmt": 1,
        "branch": 0,
        "allocation": 0,
    },  # cut from the start
}


@pytest.fixture
def study(tmp_path) -> Study:
    return check_study(residual(tmp_path, *DEEP, *PHASES))


@pytest.fixture
def context(study: Study, data) -> Context:
    return open_context(study, data=data, stored=None, emit=lambda event: None)


def drawn(method: Method, study: Study, seed: int = 0) -> dict[str, float | str]:
    """A configuration of its space, as a search draws it."""
    handle = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return draw(handle.ask(), space_of(method.space, study))


def chain_of(name: str, study: Study) -> list[NetworkSpec]:
    """A network of a method, behind all that it starts from."""
    method = METHODS[name]
    trial = None if method.baseline else 0
    spec = NetworkSpec(name, study.seed, trial, {} if trial is None else drawn(method, study))
    chain = [spec]
    while (start := start_of(chain[0], study)) is not None:
        chain.insert(0, start)
    return chain


def planned(spec: NetworkSpec, context: Context) -> Sequence[Phase]:
    return phases_of(TrainingRequest(spec, context, None, lambda event: None))


@every_method
def test_it_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.summary == method.summary.strip()
    assert method.paper
    assert 1990 <= method.year <= 2100
    assert method.default_trials > 0
    assert method.baseline or method.space, "it could neither be trained nor searched"
    assert not method.built_on or method.built_on in METHODS
    assert issubclass(method.options, Strict)


@every_method
def test_it_is_built_without_data(name: str, study: Study) -> None:
    with torch.device("meta"):
        model = build_model(study, name, pretrained=False)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert set(model.heads) == set(study.tasks)


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_outputs_have_the_shape_of_the_image(name: str, study: Study, training: bool) -> None:
    model = build_model(study, name).train(training)
    outputs = model(random_image(32))
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {
        "semseg": (2, 8, 32, 32),
        "depth": (2, 1, 32, 32),
    }
    assert all(y.isfinite().all() for y in outputs.values())


@pytest.mark.parametrize("name", METHODS)
def test_heads_may_read_every_stage_or_are_refused(name: str, tmp_path) -> None:
    study = check_study(residual(tmp_path, *DEEP, "model.head=fpn", "tasks.depth.head=light"))
    if name in ONE_MAP:
        with pytest.raises(UsageError, match=f"'{name}' .*found head 'fpn' for task semseg.*set "):
            build_model(study, name)
        return
    model = scattered(build_model(study, name)).train()
    outputs = model(random_image(32))
    assert {task: y.shape[1:] for task, y in outputs.items()} == {
        "semseg": (8, 32, 32),
        "depth": (1, 32, 32),
    }
    sum(y.square().mean() for y in outputs.values()).backward()
    head = model.heads["semseg"]
    assert all(p.grad.abs().max() > 0 for p in head.laterals.parameters()), "each map is read"
    if METHODS[name].as_compact is not None:
        assert_same_outputs(as_compact(model, name, study), model, random_image(32))
    if not METHODS[name].unpriced:
        (cost,) = costs(study, (name,)).values()
        assert not cost.uncounted
        assert not cost.disagreements


@every_method
def test_it_starts_from_the_same_weights_as_the_others(name: str) -> None:
    method = METHODS[name]
    reference = MultiTaskNet(parts(seed=4))
    torch.manual_seed(0)
    ours = method.build(parts(seed=4), method.options())
    torch.manual_seed(99)  # what was drawn before plays no part, and nothing is drawn from it
    state = torch.random.get_rng_state()
    again = method.build(parts(seed=4), method.options())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, again.state_dict()[n]) for n, a in ours.state_dict().items())
    weights = reference.encoder.state_dict()
    encoders = [m for m in ours.modules() if isinstance(m, Encoder)]
    assert len(encoders) == ENCODERS.get(name, 2)
    for encoder in encoders:
        assert all(torch.equal(weights[n], t) for n, t in encoder.state_dict().items())
    for key, tensor in reference.heads.state_dict().items():
        assert torch.equal(tensor, ours.heads.state_dict()[key])


@every_method
def test_its_options_validate_and_unknown_ones_name_the_nearest(name: str, tmp_path) -> None:
    method = METHODS[name]
    assert options_of(residual(tmp_path), method) == method.options()
    for option, default in method.options().model_dump(mode="json").items():
        written = "null" if default is None else str(default).replace("'", '"').lower()
        if default is not None:
            study = check_study(residual(tmp_path, f"options.{name}.{option}={written}"))
            assert options_of(study, method) == method.options(), "the default, written out"
        misspelt = f"options.{name}.{option}x={written}"
        with pytest.raises(UsageError, match=f"'{option}x'; did you mean '{option}'"):
            check_study(residual(tmp_path, misspelt))
    with pytest.raises(UsageError, match=f"options.{name}:\n  unknown key 'qqqq'"):
        check_study(residual(tmp_path, f"options.{name}.qqqq=1"))
    with pytest.raises(UsageError, match=f"options.{name}.start"):
        residual(tmp_path, f"options.{name}.start=somewhere")


@every_method
def test_its_phases_cover_the_epochs_in_order(name: str, study: Study, context: Context) -> None:
    done = 0
    own = [spec for spec in chain_of(name, study) if spec.method == name]
    for spec in own:
        phases = planned(spec, context)
        assert len({phase.name for phase in phases}) == len(phases), "names tell checkpoints apart"
        for phase in phases:
            first, last = phase.span
            assert (done, first <= last) == (first, True)
            index, of = phase.data_part
            assert 0 <= index < of
            done = last
    assert done == training_of(study, name).epochs


@every_method
def test_its_cost_is_counted_or_refused_with_the_reason(name: str, study: Study) -> None:
    method = METHODS[name]
    if method.unpriced:
        with pytest.raises(UsageError, match=f"the cost of '{name}' is not known before"):
            costs(study, (name,))
        return
    (cost,) = costs(study, (name,)).values()
    assert 0 < cost.backbone_macs < cost.macs
    assert cost.params > 0
    assert not cost.uncounted
    assert not cost.disagreements


@every_method
def test_its_space_draws_and_validates(name: str, study: Study) -> None:
    method = METHODS[name]
    space = space_of(method.space, study)
    draws = [drawn(method, study, seed) for seed in range(8)]
    for params, (key, item) in itertools.product(draws, space.items()):
        if isinstance(item, Range):
            assert item.low <= params[key] <= item.high
        else:
            assert params.get(key, item.values[0]) in item.legal
    for key, item in method.space.items():
        values = ("a", "b") if isinstance(item, Range) else ("no such word",)
        search = study.search.model_copy(update={"space": {key: values}})
        with pytest.raises(UsageError, match=f"search.{key} must be"):
            space_of(method.space, study.model_copy(update={"search": search}))
        assert not isinstance(item, Choice) or set(item.values) <= set(item.legal)
    # What was drawn may be given as a first configuration.
    first = tuple(as_tables(params) for params in draws if params)
    search = study.search.model_copy(update={"first": first})
    check_first(method.space, study.model_copy(update={"search": search}))


def as_tables(params: dict[str, float | str]) -> dict:
    """`{"tau.depth": 1}` as the table `{"tau": {"depth": 1}}` that a study has."""
    tables: dict = {}
    for key, value in params.items():
        name, _, task = key.partition(".")
        if task:
            tables.setdefault(name, {})[task] = value
        else:
            tables[name] = value
    return tables


def untimed(result: Result) -> str:
    """A result without wall-clock times, as text: NaN equals NaN there."""
    return json.dumps(replace(result, train_seconds=0.0, reused_seconds=0.0).to_json())


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@every_method
@pytest.mark.slow("trains")
def test_it_trains_and_resumes_to_the_bit_inside_each_phase(
    name: str, study: Study, context: Context, tmp_path, monkeypatch
) -> None:
    check_resumes(name, study, context, tmp_path, count_steps(monkeypatch))


def check_resumes(name: str, study: Study, context: Context, tmp_path, steps) -> None:
    """Stopped inside any phase it goes on to the same network, without a step more."""
    out = tmp_path / "out"
    start: Result | None = None
    for spec in chain_of(name, study):
        own = {"out": out, "start": start, "emit": lambda event: None}
        before = steps()
        whole = train_network(spec, context, **own)
        total, kept = steps() - before, files_of(spec.folder(out))
        assert (whole.method, whole.state, whole.part) == (spec.method, "complete", spec.part)
        phases = planned(spec, context)
        for phase in [phase for phase in phases if phase.span[0] < phase.span[1]]:
            folder = tmp_path / "checkpoints" / spec.label / phase.name
            before = steps()
            stop_inside(phase, spec, context, folder, own, steps, first=phase is phases[0])
            assert Checkpoints(folder, identity="x").newest().state["phase"] == phase.name
            controls = TrainingControls(Checkpoints(folder, identity="x"))
            torch.manual_seed(steps())  # as another process would begin
            resumed = train_network(spec, context, controls=controls, **own)
            assert steps() - before == total, "a step was taken twice, or left out"
            assert untimed(resumed) == untimed(whole), phase.name
            assert files_of(spec.folder(out)) == kept, phase.name
        start = whole
    check_kept(whole, context, out)


def stop_inside(phase, spec, context, folder, own, steps, *, first: bool) -> None:
    """Train up to the first step of a phase, and stop there with a checkpoint."""
    at = steps() if first else None

    def heard(event) -> None:
        nonlocal at
        if getattr(event, "done", None) == phase.span[0]:  # of the last epoch before the phase
            at = steps()

    def stop() -> bool:
        return at is not None and steps() > at

    controls = TrainingControls(Checkpoints(folder, identity="x", seconds=1e9, stop=stop))
    with pytest.raises(Preempted):
        train_network(spec, context, controls=controls, **{**own, "emit": heard})
    assert steps() == at + 1


def check_kept(result: Result, context: Context, out) -> None:
    """What was kept is read again, as it was measured, and ships as it computes."""
    network = load_network(result, context, out=out)
    assert not network.training
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(result.params_m)
    state = load_file((NetworkSpec.of(result).folder(out) / MODEL).with_suffix(TENSORS))
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[n], t) for n, t in network.state_dict().items())
    assert network_state(result, out=out).keys() == state.keys()
    again = kept_network(result, context.study, out=out)
    shipped = as_compact(again, result.method, context.study)
    image = random_image(16)
    with torch.no_grad():
        expected, found = network(image), shipped(image)
    for task, prediction in expected.items():
        torch.testing.assert_close(found[task], prediction, rtol=1e-4, atol=1e-5)
    if isinstance(shipped, CompactNet):
        for task, prediction in found.items():
            with torch.no_grad():
                alone = subnetwork(shipped, [task])(image)[task]
            torch.testing.assert_close(alone, prediction, rtol=1e-5, atol=1e-6)
    assert set(result.metrics["validation"]) == set(context.tasks)
    assert result.epochs == training_of(context.study, result.method).epochs
