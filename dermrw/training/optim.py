"""The optimiser, the learning rate schedule, and the exponential moving average of the weights."""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from dermrw.config import Train
from dermrw.models import trainable_blocks


def build_optimizer(config: Train, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimiser; weight decay applies to neither biases nor the parameters of normalisation layers.

    The head has the learning rate `train.lr`; that of each block is `train.layer_decay` times that of the next block.
    """
    named = dict(model.named_parameters())
    blocks = trainable_blocks(model)
    if config.layer_decay == 1:
        blocks = [[name for names in blocks for name in names]]
    groups = []
    for depth, names in enumerate(reversed(blocks)):
        parameters = [named[name] for name in names]
        rate = config.lr * config.layer_decay**depth
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay, "lr": rate},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
        ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def build_schedule(config: Train, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Returns the schedule over `steps` steps: constant, or one-cycle (Smith 2018: rises for 30 %, then falls)."""
    if config.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    # momentum stays constant, so that the two schedules differ only in the learning rate
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=steps, cycle_momentum=False)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Returns the exponential moving average of a model's weights and buffers, with a smaller decay in the first steps.

    In step n the decay is min(`decay`, (1 + n) / (10 + n)). With a constant decay, the initial weights would have a
    large share in the average of a run of a few hundred steps.
    """

    def update(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        n = float(steps)
        kept = min(decay, (1 + n) / (10 + n))
        return kept * averaged + (1 - kept) * current if averaged.is_floating_point() else current

    return AveragedModel(model, avg_fn=update, use_buffers=True)
