"""One of two processes that compute example weights or train together. They import little, so that they start fast."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dermrw.reweight.meta_step import reweighted_losses
from dermrw.training.distributed import Job


def network() -> nn.Module:
    """Without batch norm: examples don't touch each other."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(), nn.Flatten(), nn.LazyLinear(7)).double()


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x, meta_x = (torch.randn(n, 3, 6, 6, generator=g).double() for n in (11, 5))
    return x, torch.arange(11) % 7, meta_x, torch.arange(5)


def weigh(rank: int, world: int, folder: str) -> None:
    """One process: its part of an uneven batch and of an uneven meta batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    x, y, meta_x, meta_y = (torch.tensor_split(t, world)[rank] for t in data())
    model = network()
    model(x)
    job = Job(rank, world, rank, dist.group.WORLD)
    losses, weights = reweighted_losses(model, x, y, meta_x, meta_y, group=job.group)
    (weights * losses).sum().backward()
    job.add_gradients(model)
    torch.save((weights, [p.grad for p in model.parameters()]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train_part(rank: int, world: int, port: int, settings: list[str], run: str) -> None:
    """One process of a training, as `dermrw train --processes` starts it."""
    from dermrw.config import load_config
    from dermrw.training.train import train

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(load_config(None, settings), Path(run))
