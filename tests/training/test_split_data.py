"""Frames of a split: the same batches from memory and from disk; parts; resizing."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatesearch.training import split_data
from gatesearch.training.split_data import MEAN, STD, normalize
from tests.training.toys import SIZE, TASK_NAMES, frame, toy_frames, toy_pack


@pytest.fixture
def pack(tmp_path):
    return toy_pack(tmp_path / "toy")


def collected(part, seed=0):
    shuffled = list(part.shuffled(3, torch.Generator().manual_seed(seed)))
    return shuffled + list(part.in_order(4)) + [part.batch(torch.tensor([5, 0, 5]))]


@pytest.mark.parametrize("size", [SIZE, (3, 4), (12, 10)])
def test_memory_and_disk_give_the_same_batches(pack, monkeypatch, size) -> None:
    rows = [7, 1, 10, 2, 9, 4, 3]  # in an order of their own
    held = collected(toy_frames(pack, indices=rows, size=size))
    monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 0)
    read = collected(toy_frames(pack, indices=rows, size=size))
    assert len(held) == len(read) == 2 + 2 + 1
    for ours, theirs in zip(held, read, strict=True):
        assert ours.keys() == theirs.keys() == {"image", *TASK_NAMES}
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            assert torch.equal(ours[name], theirs[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_frames_kept_on_a_gpu_give_the_same_batches(pack) -> None:
    here, there = toy_frames(pack), toy_frames(pack)
    part = there.part(0, 2)
    there.keep_on("cuda")
    assert all(tensor.is_cuda for tensor in part.batch(torch.arange(2)).values())
    for ours, theirs in zip(collected(here), collected(there), strict=True):
        for name in ours:
            assert theirs[name].is_cuda
            assert torch.equal(ours[name], theirs[name].cpu())


def test_a_batch_is_the_frames_asked_for(pack) -> None:
    part = toy_frames(pack, indices=[9, 2, 5])
    batch = part.batch(torch.tensor([2, 0]))
    for place, number in enumerate((5, 9)):
        original = frame(number)
        assert torch.equal(batch["semseg"][place], torch.from_numpy(original["semseg"]))
        assert torch.equal(batch["depth"][place], torch.from_numpy(original["depth"]))
        image = torch.from_numpy(original["image"]).movedim(-1, 0)
        assert torch.equal(batch["image"][place], image)
        normals = torch.from_numpy(original["normals"]).movedim(-1, 0)
        torch.testing.assert_close(batch["normals"][place].double(), normals, atol=1e-3, rtol=0)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_an_epoch_sees_each_frame_at_most_once(pack, monkeypatch, in_memory, batch_size) -> None:
    if not in_memory:
        monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 0)
    part = toy_frames(pack, "depth", indices=range(7))
    generator = torch.Generator().manual_seed(1)
    orders = []
    for _ in range(2):
        batches = list(part.shuffled(batch_size, generator))
        assert [len(b["image"]) for b in batches] == [batch_size] * (7 // batch_size)
        orders.append([float(d[1, 1]) for b in batches for d in b["depth"]])
        assert len(set(orders[-1])) == 7 // batch_size * batch_size
    assert batch_size > 7 or orders[0] != orders[1]


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_left_out_change_nothing_else(pack, monkeypatch, in_memory) -> None:
    if not in_memory:
        monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 0)
    part = toy_frames(pack, "depth")
    whole = list(part.shuffled(3, generator := torch.Generator().manual_seed(1)))
    for skip in range(5):
        other = torch.Generator().manual_seed(1)
        left = part.shuffled(3, other, skip=skip)
        assert torch.equal(other.get_state(), generator.get_state())  # drawn before it is read
        for ours, theirs in zip(left, whole[skip:], strict=True):
            assert torch.equal(ours["image"], theirs["image"])


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, 11), of=st.integers(1, 5), in_memory=st.booleans())
def test_parts_are_disjoint_even_and_in_order(pack, count, of, in_memory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not in_memory:
            patch.setattr(split_data, "IN_MEMORY_BYTES", 0)
        whole = toy_frames(pack, "depth", indices=range(count))
    depths = whole.batch(torch.arange(count))["depth"][:, 1, 1].tolist()
    parts = [whole.part(i, of) for i in range(of)]
    sizes = [len(part) for part in parts]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    seen = [part.batch(torch.arange(len(part)))["depth"][:, 1, 1].tolist() for part in parts]
    places = [[depths.index(depth) for depth in part] for part in seen]
    assert sorted(place for part in places for place in part) == list(range(count))
    assert all(part == sorted(part) for part in places)


@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_of_a_part_and_their_batches(pack, monkeypatch, in_memory) -> None:
    if not in_memory:
        monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 0)
    whole = toy_frames(pack, indices=[7, 1, 10, 2, 9, 4, 3, 0])
    halves = [whole.part(0, 2), whole.part(1, 2)]
    quarters = [half.part(i, 2) for half in halves for i in range(2)]
    images = [quarter.batch(torch.arange(2))["image"] for quarter in quarters]
    everything = {image.numpy().tobytes() for image in torch.cat(images)}
    assert everything == {image.numpy().tobytes() for image in next(whole.in_order(8))["image"]}
    again = toy_frames(pack, indices=[7, 1, 10, 2, 9, 4, 3, 0]).part(1, 2)
    for ours, theirs in zip(halves[1].in_order(3), again.in_order(3), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    drawn = list(halves[1].shuffled(2, torch.Generator().manual_seed(1)))
    assert [len(batch["image"]) for batch in drawn] == [2, 2]
    shuffled = {image.numpy().tobytes() for batch in drawn for image in batch["image"]}
    assert shuffled == {image.numpy().tobytes() for image in next(again.in_order(4))["image"]}


def test_parts_share_the_memory_of_the_whole(pack) -> None:
    whole = toy_frames(pack)
    part = whole.part(0, 2).part(1, 2)
    assert part._memory is whole._memory


@pytest.mark.parametrize("index", [-1, 2])
def test_a_part_that_is_none(pack, index) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 1, found {index}"):
        toy_frames(pack).part(index, 2)


def test_normalized_images_are_what_imagenet_encoders_read() -> None:
    image = torch.tensor(MEAN)[None, :, None, None] * 255 + torch.zeros(1, 3, 1, 2)
    image[..., 1] += torch.tensor(STD)[:, None] * 255
    expected = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    torch.testing.assert_close(normalize(image), expected, atol=1e-5, rtol=0)
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(black, -torch.tensor(MEAN) / torch.tensor(STD))
