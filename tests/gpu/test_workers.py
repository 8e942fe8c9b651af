"""Several workers train what one does, to the bit: over NCCL where each has a GPU, else over gloo on one."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.gpu.models import free_port
from wsdm_ray.config import HeadConfig, LoraConfig, OptimizerConfig, TextConfig, TrainConfig
from wsdm_ray.modeling.manifest import Manifest, folder_digest
from wsdm_ray.modeling.tiny import make_tiny_model
from wsdm_ray.training.distributed import current_group

pytest.importorskip("peft", reason="needs PEFT for adapters")
pytest.importorskip("pyarrow", reason="needs PyArrow for votes")


def config_of(base: str, folder: Path, layout: str, shard_base: bool) -> TrainConfig:
    return TrainConfig(
        base=base, train=("unused",), output=str(folder), pairs_per_step=16, token_budget=512, max_steps=3,
        micro_batches=4, compile="yes", layout=layout, quantization="w8a8-int8", shard_base=shard_base,
        text=TextConfig(max_tokens=96), lora=LoraConfig(r=8, alpha=16, dropout=0.1),
        head=HeadConfig(dropout=0.1), optimizer=OptimizerConfig(learning_rate=5e-3),
    )  # fmt: skip


def train_one(
    rank: int, size: int, port: int, base: str, folder: Path, layout: str, shard_base: bool
) -> None:
    """What a worker does."""
    from tests.unit.training.conftest import learnable_votes
    from wsdm_ray.modeling import sharded_weights
    from wsdm_ray.training.loop import Trainer

    sharded_weights.LEAST_BYTES = 1  # else all layers of so small a model stay whole
    gpus = torch.cuda.device_count()
    torch.cuda.set_device(rank % gpus)
    backend = "nccl" if size <= gpus else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    try:
        config = config_of(base, folder, layout, shard_base)
        manifest = Manifest(
            kind="adapter", base=base, base_digest=folder_digest(base), quantization="w8a8-int8",
            head=config.head, text=config.text, orders=config.orders,
        )  # fmt: skip
        votes, valid = learnable_votes(48, 0), learnable_votes(30, 1)
        trainer = Trainer(config, base, manifest, votes, valid, current_group())
        steps = [(step.loss, step.accuracy, step.grad_norm) for step in trainer.steps()]
        found = trainer.evaluate()
        assert found
        trainer.save(str(folder))
        if rank == 0:
            (folder / "numbers.json").write_text(json.dumps([steps, found.log_loss]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("family", "layout"), [("gemma2", "shared"), ("llama", "shared"), ("llama", "packed")]
)
def test_two_workers_train_what_one_does(family, layout, tmp_path):
    base = str(tmp_path / "base")
    make_tiny_model(base, ["What? 42 Wind sum answer"], family=family, vocabulary=400, width=512, layers=4)
    runs = []
    for size, shard_base in ((1, False), (2, False), (2, True)):
        folder = tmp_path / f"{size} {shard_base}"
        folder.mkdir()
        torch.multiprocessing.spawn(
            train_one, (size, free_port(), base, folder, layout, shard_base), nprocs=size
        )
        names = ("numbers.json", "adapter_model.safetensors", "optimizer.safetensors")
        runs.append([(folder / name).read_bytes() for name in names])
    assert runs == [runs[0]] * len(runs)
