"""Batches, order, resuming inside an epoch, worker processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sam3slim.data.batch import Batch
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.collate import Collate
from sam3slim.data.loader import ConceptLoader, EpochSampler
from sam3slim.data.module import ConceptData
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.errors import UserError
from sam3slim.specs import TextSpec
from sam3slim.text.tokenizer import clip_tokenizer, encode

from .samples import TINY, CocoWriter, square

TEXT = TextSpec(vocab_size=1024, context_length=16)


def module(root: Path, **kwargs: Any) -> ConceptData:
    defaults: dict[str, Any] = {"image_size": 48, "text": TEXT, "batch_size": 4}
    return ConceptData(root, **defaults | {"prompts": PromptSpec(negatives=2)} | kwargs)


def ids(batch: Batch) -> list[int]:
    return [info.image_id for info in batch.images]


def test_first_batches__of_a_training_and_its_random_state(shapes_root: Path) -> None:
    data = module(shapes_root, prompts=PromptSpec(negatives=0))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = list(data.first_batches(3))
    assert torch.equal(torch.get_rng_state(), before)
    trained = [batch for batch in data.loader("train", training=True) if len(batch.input_ids)][:3]
    assert [ids(batch) for batch in found] == [ids(batch) for batch in trained]
    assert all(map(torch.equal, [b.pixel_values for b in found], [b.pixel_values for b in trained]))
    assert len(list(data.first_batches(1, "val"))) == 1


def test_collate__indices_point_at_their_rows(shapes_root: Path) -> None:
    data = CocoConcepts(shapes_root, image_size=48, prompts=PromptSpec(negatives=2))
    samples = [data[index] for index in range(4)]
    batch = Collate(TEXT)(samples)
    assert batch.pixel_values.shape == (4, 3, 48, 48)
    assert torch.equal(batch.input_ids, encode(clip_tokenizer(1024, 16), batch.phrases)[0])
    assert torch.equal(batch.attention_mask, encode(clip_tokenizer(1024, 16), batch.phrases)[1])
    assert bool((batch.image_index.diff() >= 0).all())
    assert bool((batch.targets.prompt_index.diff() >= 0).all())
    assert batch.targets.masks is not None
    for number, sample in enumerate(samples):
        prompts = (batch.image_index == number).nonzero()[:, 0]
        assert [batch.phrases[prompt] for prompt in prompts] == sample.phrases
        assert batch.category_ids[prompts].tolist() == sample.category_ids
        mine = (batch.image_index[batch.targets.prompt_index] == number).nonzero()[:, 0]
        assert torch.equal(batch.targets.boxes[mine], sample.boxes)
        assert sample.masks is not None
        assert torch.equal(batch.targets.masks[mine], sample.masks)
        assert torch.equal(batch.targets.prompt_index[mine] - prompts[0], sample.prompt_index)


def test_collate__image_without_targets(write_coco: CocoWriter) -> None:
    data = CocoConcepts(write_coco([], [square(0, 0)]), "train", image_size=20, prompts="all")
    batch = Collate(TEXT)([data[0], data[1]])
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.targets.prompt_index.tolist() == [3]


def test_batch__to_keeps_everything(shapes_root: Path) -> None:
    batch = next(iter(module(shapes_root).loader("val")))
    moved = batch.to("meta")
    assert moved.pixel_values.device.type == moved.targets.boxes.device.type == "meta"
    assert moved.input_ids.shape == batch.input_ids.shape
    assert moved.images[0].ground_truth is batch.images[0].ground_truth


def test_module__evaluation_asks_everything_in_file_order(shapes_root: Path) -> None:
    data = module(shapes_root, eval_batch_size=3)
    batches = list(data.val_dataloader())
    assert [image for batch in batches for image in ids(batch)] == [
        2_000_000,
        2_000_001,
        2_000_002,
        2_000_003,
    ]
    assert len(batches[0].phrases) == 3 * len(TINY.categories())
    assert batches[0].images[0].ground_truth is not None


def test_module__draws_shapes_on_first_use(tmp_path: Path) -> None:
    data = module(tmp_path / "set", shapes=TINY)
    data.prepare_data()
    data.setup("fit")
    assert len(data.dataset("train", training=True)) == 12
    assert data.dataset("val") is data.dataset("val")


def test_module__missing_folder_stops_in_setup(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root="):
        module(tmp_path / "nowhere").setup("fit")


def test_module__bad_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=0"):
        module(tmp_path, batch_size=0)


def test_loader__order_depends_on_seed_and_epoch(shapes_root: Path) -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        loader = module(shapes_root, seed=seed).train_dataloader()
        loader.load_state_dict({"epoch": epoch, "batches": 0})
        return [image for batch in loader for image in ids(batch)]

    assert order(0) == order(0)
    assert sorted(order(0)) == sorted(order(1)) == list(range(1_000_000, 1_000_012))
    assert order(0) != order(1)
    assert order(0) != order(0, seed=1)


def test_loader__an_epoch_that_lightning_ends_early_is_not_gone_on_with(shapes_root: Path) -> None:
    data = module(shapes_root)
    for limit, taken in ((2, 2), (0.7, 2), (9, 3), (1.0, 3)):
        data.trainer = SimpleNamespace(world_size=1, global_rank=0, limit_train_batches=limit)
        loader = data.train_dataloader()
        batches = iter(loader)
        states = [(next(batches), loader.state_dict())[1] for _ in range(taken)]
        assert states[-1] == {"epoch": 1, "batches": 0}
        assert states[-2] == {"epoch": 0, "batches": taken - 1}


def test_loader__a_broken_off_epoch_does_not_shorten_the_next(shapes_root: Path) -> None:
    loader = module(shapes_root).train_dataloader()
    next(iter(loader))
    assert len(list(loader)) == len(loader) == 3
    assert len(list(loader)) == 3


def test_loader__set_smaller_than_a_batch_still_trains(shapes_root: Path) -> None:
    batches = list(module(shapes_root, batch_size=32).train_dataloader())
    assert [len(batch.images) for batch in batches] == [12]


def test_loader__ranks_share_evaluation_without_repeats(shapes_root: Path) -> None:
    data = CocoConcepts(shapes_root, "test", image_size=48)
    parts = [list(EpochSampler(data, shuffle=False, seed=0, world_size=2, rank=rank)) for rank in range(2)]
    assert parts == [[0, 2], [1]]


def test_loader__workers_give_the_same_batches_every_epoch(shapes_root: Path) -> None:
    def run(num_workers: int) -> list[tuple[list[str], Tensor]]:
        loader = module(
            shapes_root, num_workers=num_workers, augment=AugmentSpec(scale=(0.7, 1.4)), cache="ram"
        ).train_dataloader()
        seen = []
        for _ in range(2):
            seen += [(batch.phrases, batch.pixel_values) for batch in loader]
        return seen

    for (phrases, pixels), (other_phrases, other_pixels) in zip(run(0), run(1), strict=True):
        assert phrases == other_phrases
        assert torch.equal(pixels, other_pixels)


def test_loader__worker_errors_stay_one_line(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0)])
    (root / "images/1.png").write_text("broken")
    data = CocoConcepts(root, "train", image_size=20)
    loader = ConceptLoader(data, Collate(TEXT), batch_size=1, training=False, num_workers=1)
    with pytest.raises(UserError, match=r"^image .*1\.png cannot be decoded.*skip$") as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


class Recorder(lightning.LightningModule):
    """Trains one number and notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[list[int], list[str]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((ids(batch), batch.phrases))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, folder: Path, steps: int, resume: Path | None = None, save_every: int = 100) -> Recorder:
    model = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=save_every, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=module(root), ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_lightning__resumed_run_sees_what_an_unbroken_one_sees(shapes_root: Path, tmp_path: Path, stop: int) -> None:
    whole = fit(shapes_root, tmp_path, 7, save_every=stop)
    assert len({str(step) for step in whole.seen}) == 7
    resumed = fit(shapes_root, tmp_path, 7, tmp_path / f"step={stop}.ckpt")
    assert resumed.seen == whole.seen[stop:]


def test_lightning__finished_run_goes_on(shapes_root: Path, tmp_path: Path) -> None:
    whole = fit(shapes_root, tmp_path, 7)
    assert fit(shapes_root, tmp_path, 4).seen == whole.seen[:4]
    assert fit(shapes_root, tmp_path, 7, tmp_path / "last.ckpt").seen == whole.seen[4:]
