"""The optimiser and the learning rate over the steps."""

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from dermrw.config import Train


def build_optimizer(config: Train, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser; weight decay spares biases and normalisation, whose scale is not a complexity."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def build_schedule(config: Train, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate over `steps` steps: one-cycle (Smith 2018; up for 30 %, then down to almost 0), or constant."""
    if config.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    # momentum is not cycled, so that the schedule alone changes between the two
    return OneCycleLR(optimizer, config.lr, total_steps=steps, cycle_momentum=False)
