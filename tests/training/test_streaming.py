"""Sets larger than memory: random blocks, windows of them, bounded memory, going on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.streaming import STREAM, sparse_pack
from gatesearch.datasets import open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.errors import DataError
from gatesearch.tasks import build_task
from gatesearch.training import SplitData, block_shuffle, split_data
from gatesearch.training.block_shuffle import draw_windows, window_sizes
from gatesearch.training.row_reader import RowReader
from gatesearch.training.split_data import LABELLED

ROOT = Path(__file__).parents[2]
SIZE = (2, 3)
FRAMES = 203


def frame(number):
    unlabelled = number % 4 == 0
    return {
        "image": np.full((*SIZE, 3), number, np.uint8),
        "far": np.full(SIZE, 0 if unlabelled else number, np.float32),
    }


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Frames whose every value is their number; every fourth lacks its label."""
    folder = tmp_path_factory.mktemp("streamed") / "toy"
    write_pack(
        folder, dataset="toy", size=SIZE,
        fields={"far": build_task("depth", {}, where="toy")},
        splits={
            "train": SplitFrames([str(i) for i in range(FRAMES)], frame),
            "test": SplitFrames(["t"], frame),
        },
        source="made up", emit=lambda event: None,
    )  # fmt: skip
    return open_pack(folder)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Four frames per block, five blocks per window."""
    monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(split_data, "window_sizes", lambda frame_bytes: (4, 5))


def data_of(pack, indices=range(FRAMES), size=SIZE):
    tasks = {"far": build_task("depth", {}, where="toy")}
    return SplitData(pack, "train", indices=list(indices), tasks=tasks, size=size)


def numbers_of(batches):
    return [int(image[0, 0, 0]) for batch in batches for image in batch["image"]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50, 203])
def test_every_frame_comes_once_with_its_labels(pack, batch_size):
    batches = list(data_of(pack).shuffled(batch_size, generator()))
    assert [len(batch["image"]) for batch in batches] == [batch_size] * (FRAMES // batch_size)
    numbers = numbers_of(batches)
    assert len(set(numbers)) == len(numbers) == FRAMES // batch_size * batch_size
    assert numbers != sorted(numbers)
    for batch in batches:
        shown = batch["image"][:, 0, 0, 0].float()
        known = shown % 4 != 0
        assert torch.equal(batch["far"][:, 0, 0], shown * known)
        assert torch.equal(batch[LABELLED], known[:, None])
        assert batch["image"].dtype == torch.uint8


def test_the_order_is_that_of_the_generator_alone(pack):
    data, drawn = data_of(pack), generator()
    first = numbers_of(data.shuffled(8, drawn))
    state = drawn.get_state()
    second = numbers_of(data.shuffled(8, drawn))
    assert first != second
    drawn.set_state(state)
    np.random.seed(5)
    torch.manual_seed(5)
    assert numbers_of(data_of(pack).shuffled(8, drawn)) == second


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batch_size=st.integers(1, 60), skip=st.integers(0, 30))
def test_an_epoch_goes_on_after_any_batch(pack, batch_size, skip):
    data, drawn = data_of(pack), generator(3)
    whole = numbers_of(data.shuffled(batch_size, generator(3)))
    rest = data.shuffled(batch_size, drawn, skip=skip)
    expected = generator(3)
    data.shuffled(batch_size, expected)
    assert torch.equal(drawn.get_state(), expected.get_state())
    assert numbers_of(rest) == whole[skip * batch_size :]


def test_an_epoch_that_is_left_early_ends_its_reader(pack):
    batches = data_of(pack).shuffled(8, generator())
    assert len(numbers_of([next(batches)])) == 8
    batches.close()


def test_shares_of_frames_and_chosen_frames(pack):
    chosen = [*range(5, FRAMES, 3)]
    data = data_of(pack, chosen)
    assert sorted(numbers_of(data.shuffled(1, generator()))) == chosen
    shares = [data.part(i, 3) for i in range(3)]
    seen = [numbers_of(share.shuffled(1, generator())) for share in shares]
    assert sorted(number for share in seen for number in share) == chosen
    assert [len(share) for share in seen] == [22, 22, 22]
    for share in shares:
        for batch in share.shuffled(4, generator()):
            assert torch.equal(batch[LABELLED][:, 0], batch["image"][:, 0, 0, 0] % 4 != 0)


def test_what_fits_into_a_window_is_shuffled_as_in_memory(pack, monkeypatch):
    read = numbers_of(data_of(pack, range(20)).shuffled(3, generator()))
    monkeypatch.setattr(split_data, "IN_MEMORY_BYTES", 2**30)
    assert numbers_of(data_of(pack, range(20)).shuffled(3, generator())) == read
    assert read == torch.randperm(20, generator=generator())[:18].tolist()


def test_frames_in_order_and_at_another_size(pack):
    data = data_of(pack, size=(4, 6))
    batches = list(data.in_order(10, 33))
    assert numbers_of(batches) == list(range(33))
    assert batches[0]["image"].shape == (10, 3, 4, 6)
    streamed = list(data.shuffled(10, generator()))
    assert {batch["far"].shape for batch in streamed} == {(10, 4, 6)}
    assert len(set(numbers_of(streamed))) == 200
    assert data.labels(7, "far").tolist() == [[7.0] * 6] * 4


def test_a_pack_that_is_replaced_is_read_to_its_end(pack, tmp_path):
    import shutil

    shutil.copytree(pack.folder, tmp_path / "toy")
    data = data_of(open_pack(tmp_path / "toy"))
    shutil.rmtree(tmp_path / "toy")
    assert len(set(numbers_of(data.shuffled(1, generator())))) == FRAMES


def test_a_file_that_is_cut_meanwhile(pack, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(100.0))
    reader = RowReader(path, np.load(path, mmap_mode="r"))
    assert reader.read(np.array([0, 1, 7, 7, 9])).tolist() == [0, 1, 7, 7, 9]
    os.truncate(path, 200)
    with pytest.raises(DataError, match=r"x\.npy has become shorter"):
        reader.read(np.array([98]))


def test_arrays_of_other_orders_are_read_too(tmp_path):
    values = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "x.npy", values)
    reader = RowReader(tmp_path / "x.npy", np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert reader.read(np.array([0, 2])).tolist() == values[[0, 2]].tolist()


def order_of_epoch(frames, block, window, seed):
    windows = draw_windows(frames, block=block, window=window, generator=generator(seed))
    return torch.cat([torch.cat(w.blocks)[w.order] for w in windows])


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 400), block=st.integers(1, 30), window=st.integers(1, 9),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_an_order_is_a_permutation(frames, block, window, seed):
    order = order_of_epoch(frames, block, window, seed)
    assert sorted(order.tolist()) == list(range(frames))


def test_places_in_the_file_and_in_the_epoch_are_not_correlated():
    """Mean correlation over epochs 0, each within 4 deviations of the drawing of 512 blocks."""
    frames, block, window = 4096, 8, 16
    places = torch.arange(frames).double()
    correlations = [
        float(torch.corrcoef(torch.stack([places, order_of_epoch(frames, block, window, s)]))[0, 1])
        for s in range(20)
    ]
    deviation = (frames / block) ** -0.5
    assert max(map(abs, correlations)) < 4 * deviation
    assert abs(np.mean(correlations)) < 4 * deviation / 20**0.5


def test_neighbours_share_a_block_as_often_as_is_said():
    frames, block, window = 4096, 8, 16
    pairs = []
    for seed in range(10):
        blocks = order_of_epoch(frames, block, window, seed) // block
        pairs.append(float((blocks[1:] == blocks[:-1]).double().mean()))
    expected = (block - 1) / (block * window - 1)
    assert np.mean(pairs) == pytest.approx(expected, rel=0.1)
    assert expected < 1 / window


def test_windows_are_of_bounded_size():
    assert window_sizes(288 * 384 * 4) == (9, 67)
    for frame_bytes in (1, 1000, 10**6, 10**8):
        block, window = window_sizes(frame_bytes)
        most = max(block_shuffle.WINDOW_BYTES, 2 * frame_bytes)
        assert block * window * frame_bytes <= most


@pytest.mark.slow("many frames")
def test_20_gb_are_streamed_in_less_than_2_gib(tmp_path):
    folder = sparse_pack(tmp_path / "sparse")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, folder, "4000"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    count, gib, _ = done.stdout.split()
    assert int(count) == 4000
    assert float(gib) < 2
