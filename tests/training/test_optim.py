from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from dermrw.config import Train
from dermrw.models import trainable_blocks, views
from dermrw.training.optim import build_optimizer, build_schedule, moving_average


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "vit_b_16", "densenet121"])
def test_every_parameter_is_in_one_block(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    found = [parameter for names in trainable_blocks(model) for parameter in names]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_the_head_has_the_whole_rate_and_each_block_below_it_less() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 3))
    config = Train(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    optimizer = build_optimizer(config, model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[id(model[i].weight)] for i in (0, 2, 3)] == [0.25, 0.5, 1.0]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0.1 and decay[id(model[0].bias)] == 0
    schedule = build_schedule(config, optimizer, 10)
    peaks = [0.0] * len(optimizer.param_groups)
    for _ in range(10):
        peaks = [max(a, float(b)) for a, b in zip(peaks, schedule.get_last_lr(), strict=True)]
        optimizer.step()
        schedule.step()
    assert sorted(set(peaks)) == pytest.approx([0.25, 0.5, 1.0])  # the cycle is each group's own


def test_the_moving_average_is_the_recurrence_written_out() -> None:
    model: Any = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)).double()
    mean, expected = moving_average(model, 0.6), None
    for step in range(20):
        with torch.no_grad():
            model[0].weight.fill_(float(step**2))
            model[1].running_mean.fill_(float(step))
            model[1].num_batches_tracked.fill_(step)
        mean.update_parameters(model)
        kept = min(0.6, (1 + step) / (10 + step))
        expected = 0.0 if expected is None else kept * expected + (1 - kept) * step**2
    averaged: Any = mean.module
    assert averaged[0].weight.item() == pytest.approx(expected)
    assert averaged[1].num_batches_tracked.item() == 19
    assert 0 < averaged[1].running_mean.item() < 19


def test_the_views_are_the_symmetries_of_the_square() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    seen = views(x, 8)
    assert torch.equal(seen[0], x) and len({tuple(v.flatten().tolist()) for v in seen}) == 8
    for view in seen:  # a view of a view is a view
        assert {tuple(v.flatten().tolist()) for v in views(view, 8)} == {tuple(v.flatten().tolist()) for v in seen}
    assert [view.flatten().tolist() for view in views(x, 4)] == [
        torch.rot90(x, k, (2, 3)).flatten().tolist() for k in range(4)
    ]
    assert views(x, 1) == [x]
