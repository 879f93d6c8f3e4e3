"""The optimiser and the learning rate over the steps."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from dermrw.config import Train
from dermrw.models import trainable_blocks


def build_optimizer(config: Train, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser; weight decay spares biases and normalisation, whose scale is not a complexity.

    With `train.layer_decay`, the head has the whole rate and each block below it `layer_decay` times that of the next.
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
    """The learning rate over `steps` steps: one-cycle (Smith 2018; up for 30 %, then down to almost 0), or constant."""
    if config.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    # momentum is not cycled, so that the schedule alone changes between the two
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=steps, cycle_momentum=False)
