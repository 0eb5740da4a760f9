"""`gs.InterroGate` trains in Lightning and in the Trainer of Hugging Face, on rendered scenes."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import gatesearch as gs
from gatesearch.tasks import Task
from gatesearch.training.split_data import normalize
from gatesearch.trials.context import open_data
from tests.library.toys import assert_same
from tests.search.tiny import ignore, tiny

# Other people's packages warn of what is theirs.
pytestmark = [pytest.mark.slow("trains"), pytest.mark.filterwarnings("ignore")]

TASKS = ("semseg", "depth")
SIZE, EPOCHS, BATCH = (32, 32), 3, 4


class Scenes(Dataset):
    """Frames of the training part, one by one."""

    def __init__(self, folder: Path, data: Path) -> None:
        frames = "data.train_frames=24"
        study = tiny(folder, f"protocol.size={list(SIZE)}", "protocol.name=scenes-32", frames)
        opened = open_data(study, data=data, emit=ignore)
        self.tasks: Mapping[str, Task] = opened.tasks
        batch = opened.train.batch(torch.arange(len(opened.train)))
        self.batch = {name: batch[name] for name in ("image", *TASKS)}
        self.batch["image"] = normalize(batch["image"])

    def __len__(self) -> int:
        return len(self.batch["image"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.batch.items()}

    def loss(self, output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        return torch.stack(
            [
                task.loss(F.interpolate(output[name], size=SIZE, mode="bilinear"), batch[name])
                for name, task in self.tasks.items()
            ]
        ).sum()


@pytest.fixture
def scenes(tmp_path: Path, data: Path) -> Scenes:
    return Scenes(tmp_path, data)


def network(scenes: Scenes) -> gs.InterroGate:
    torch.manual_seed(0)
    encoder = gs.encoder("resnet18", width=0.1, output_stride=16)
    channels = {name: scenes.tasks[name].channels for name in TASKS}
    heads = {name: nn.Conv2d(encoder.channels, n, 1) for name, n in channels.items()}
    return gs.InterroGate(encoder, heads, estimator="sigmoid")


def plain_loop(net: gs.InterroGate, scenes: Scenes, folder: Path) -> None:
    optimizer = torch.optim.AdamW(net.param_groups(lr=2e-3))
    loader = DataLoader(scenes, BATCH, shuffle=True, drop_last=True)
    steps = EPOCHS * len(loader)
    for epoch in range(EPOCHS):
        for index, batch in enumerate(loader):
            net.anneal((epoch * len(loader) + index + 1) / steps)
            loss = scenes.loss(net(batch["image"]), batch) + net.penalty(0.3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def in_lightning(net: gs.InterroGate, scenes: Scenes, folder: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch, index):
            share = (self.global_step + 1) / self.trainer.estimated_stepping_batches
            self.net.anneal(share)
            return scenes.loss(self.net(batch["image"]), batch) + self.net.penalty(0.3)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.param_groups(lr=2e-3))

    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(scenes, BATCH, shuffle=True, drop_last=True))
    (checkpoint,) = folder.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    again = network(scenes)
    again.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    assert again.temperature == net.temperature
    assert gs.extract(again).description == gs.extract(net).description


def in_hugging_face(net: gs.InterroGate, scenes: Scenes, folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image, semseg, depth):
            output = self.net(image)
            loss = scenes.loss(output, {"semseg": semseg, "depth": depth})
            return {"loss": loss + self.net.penalty(0.3), **output}

    class Anneal(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, model, **rest):
            model.net.anneal((state.global_step + 1) / state.max_steps)

    options = transformers.TrainingArguments(
        str(folder / "trainer"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
        use_cpu=True, report_to="none", save_strategy="epoch", save_total_limit=1,
        disable_tqdm=True, dataloader_drop_last=True,
    )  # fmt: skip
    wrapped = WithLoss()
    transformers.Trainer(
        wrapped, options, train_dataset=scenes, callbacks=[Anneal()],
        optimizers=(torch.optim.AdamW(net.param_groups(lr=2e-3)), None),
    ).train()  # fmt: skip
    (kept,) = (folder / "trainer").glob("*/model.safetensors")
    from safetensors.torch import load_file

    again = network(scenes)
    state = load_file(kept)
    again.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    assert again.temperature == net.temperature


@pytest.mark.parametrize("train", [plain_loop, in_lightning, in_hugging_face])
def test_a_training_ends_in_a_small_network(
    train: Callable[..., None], scenes: Scenes, tmp_path: Path
) -> None:
    net = network(scenes)

    def loss() -> float:
        with torch.no_grad():
            return scenes.loss(net.train()(scenes.batch["image"]), scenes.batch).item()

    before, opened = loss(), net.open_share().mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(net, scenes, tmp_path)
    assert loss() < 0.9 * before
    assert net.open_share().mean().item() < opened
    assert net.temperature == pytest.approx(0.1)  # annealed to the end
    share = gs.project(net, "1.3xMTL")
    assert 0.98 <= share <= 1
    compact, image = gs.extract(net), scenes.batch["image"][:3]
    cost = gs.count_macs(compact, (1, 3, *SIZE))
    assert cost.macs == pytest.approx(share * 1.3 * net.costs()["mtl"].macs, rel=1e-9)
    assert cost.disagreements == ()
    with torch.no_grad():
        assert_same(compact(image), net.eval()(image))
