"""Frames of several data sets as one: what is in a batch, and how often each frame comes."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.datasets.pack_reader import open_pack
from gatesearch.training import MixedData, SplitData
from gatesearch.training.mixed_data import _apportioned
from gatesearch.training.split_data import LABELLED
from tests.toy_packs import toy_frame, write_toy_pack
from tests.training.toys import CLASSES, toy_tasks

SIZE = (4, 6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A source of 5 frames with semseg, and one of 3 with depth and semseg."""
    made = []
    for name, count, tasks in (("a", 5, ["semseg"]), ("b", 3, ["semseg", "depth"])):
        folder = tmp_path_factory.mktemp(name) / name

        def frame(number, tasks=tasks, offset=100 * count):
            whole = toy_frame(number + offset, size=SIZE, classes=CLASSES)
            return {field: whole[field] for field in ["image", *tasks]}

        pack = open_pack(
            write_toy_pack(
                folder, size=SIZE, classes=CLASSES, frame=frame, train=count, test=[frame(9)]
            )
        )
        chosen = {task: toy_tasks("semseg", "depth")[task] for task in tasks}
        made.append(SplitData(pack, "train", indices=range(count), tasks=chosen, size=SIZE))
    return made


def mixed(sources, **options):
    return MixedData(sources, tasks=toy_tasks("semseg", "depth"), **options)


def owner(sources, image):
    """(source, frame) of an image."""
    for number, source in enumerate(sources):
        for frame in range(len(source)):
            if torch.equal(source.batch(torch.tensor([frame]))["image"][0], image):
                return number, frame
    raise AssertionError("an image of no source")


def test_a_batch_has_unknown_labels_where_a_source_has_none(sources) -> None:
    data = mixed(sources)
    assert (len(data), data.labelled) == (8, {"semseg": 8, "depth": 3})
    batch = data.batch(torch.tensor([7, 0, 5, 4]))
    assert [owner(sources, image) for image in batch["image"]] == [(1, 2), (0, 0), (1, 0), (0, 4)]
    assert batch[LABELLED].tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert batch["depth"][[1, 3]].eq(0).all()
    expected = sources[1].batch(torch.tensor([2, 0]))
    assert torch.equal(batch["depth"][[0, 2]], expected["depth"])
    assert torch.equal(batch["semseg"][[0, 2]], expected["semseg"])
    assert torch.equal(data.labels(7, "depth"), expected["depth"][0])
    assert data.labels(0, "depth").eq(0).all()


@pytest.mark.parametrize("mixing", ["frames", "share", "task"])
def test_batches_follow_the_generator_and_can_be_left_out(sources, mixing) -> None:
    data = mixed(sources, mixing=mixing)

    def epoch(skip=0):
        batches = data.shuffled(2, torch.Generator().manual_seed(3), skip=skip)
        return [batch["image"] for batch in batches]

    whole = epoch()
    assert len(whole) == 4
    for skip in range(5):
        assert all(map(torch.equal, epoch(skip), whole[skip:]))
    other = [batch["image"] for batch in data.shuffled(2, torch.Generator().manual_seed(4))]
    assert not all(map(torch.equal, other, whole))


def test_all_frames_alike_come_once_in_an_epoch(sources) -> None:
    batches = list(mixed(sources).shuffled(4, torch.Generator()))
    seen = Counter(owner(sources, image) for batch in batches for image in batch["image"])
    assert set(seen.values()) == {1}
    assert len(seen) == 8


def test_each_batch_has_every_source_by_share(sources) -> None:
    data = mixed(sources, mixing="share", shares=[1, 3])
    batches = list(data.shuffled(4, torch.Generator()))
    for batch in batches:
        assert Counter(owner(sources, image)[0] for image in batch["image"]) == {0: 1, 1: 3}
    seen = Counter(owner(sources, image) for batch in batches for image in batch["image"])
    assert sorted(seen.values()) == [1, 1, 2, 2, 2]  # the three of the second source come again


def test_each_batch_is_of_one_source(sources) -> None:
    data = mixed(sources, mixing="task", shares=[1, 1])
    generator = torch.Generator().manual_seed(0)
    drawn = Counter()
    for _ in range(20):
        for batch in data.shuffled(2, generator):
            (number,) = {owner(sources, image)[0] for image in batch["image"]}
            drawn[number] += 1
    assert 25 <= drawn[0] <= 55  # of 80, half of them by the shares


def test_a_batch_lies_where_one_of_its_sources_is_kept(sources, monkeypatch) -> None:
    """A device may have room for one source alone; here it is one that every machine has."""
    plain = sources[1].batch

    def kept(positions):
        return {name: tensor.to("meta") for name, tensor in plain(positions).items()}

    monkeypatch.setattr(sources[1], "batch", kept)
    batch = mixed(sources).batch(torch.tensor([7, 0, 5]))
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}
    assert batch["image"].shape == (3, 3, *SIZE)
    assert mixed(sources).batch(torch.tensor([0, 1]))["image"].device.type == "cpu"


def test_parts_share_the_frames(sources) -> None:
    data = mixed(sources)
    parts = [data.part(i, of=2) for i in range(2)]
    seen = [
        owner(sources, image) for part in parts for image in part.batch(torch.arange(4))["image"]
    ]
    assert sorted(seen) == [(0, i) for i in range(5)] + [(1, i) for i in range(3)]


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=1, max_size=6),
    steps=st.integers(0, 40),
    batch_size=st.integers(1, 16),
)
def test_shares_are_kept_to_within_a_frame(weights, steps, batch_size) -> None:
    shares = torch.tensor(weights, dtype=torch.float64)
    shares /= shares.sum()
    counts = _apportioned(shares, steps, batch_size)
    assert counts.shape == (steps, len(weights))
    assert (counts >= 0).all()
    assert (counts.sum(1) == batch_size).all()
    if steps:
        off = (counts.sum(0) - shares * steps * batch_size).abs()
        assert off.max() < len(weights)
