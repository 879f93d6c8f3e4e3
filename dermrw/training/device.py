"""Choice of device, precision and memory layout for this machine, by timing training steps."""

import copy
import ctypes
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dermrw.config import Train
from dermrw.errors import UserError
from dermrw.models import train_mode

Step = Callable[[nn.Module, Tensor], Tensor]


class Placement(NamedTuple):
    """Device, precision (`fp32`, or `bf16` by autocast) and memory layout."""

    device: torch.device
    precision: str
    channels_last: bool

    def autocast(self) -> AbstractContextManager:
        """Returns the autocast context for a step."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, model: nn.Module) -> nn.Module:
        """Moves the model to the device, in the memory layout. On a CPU, `keep_freed_memory` then holds."""
        if self.device.type == "cpu":
            keep_freed_memory()
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout)

    def __str__(self) -> str:
        layout = ", channels-last" if self.channels_last else ""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {self.precision}{layout}"
        return f"CPU ({torch.get_num_threads()} threads), {self.precision}{layout}"


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next step. Without glibc, this does nothing.

    By default glibc returns the memory of every large tensor to the kernel, and the kernel zeroes the pages again in
    each step. Training MobileNetV2 on two cores was 1.7 times slower with the default (64 images of 128 px, both plain
    and reweighted). On a virtual machine, where page faults cost more, the prediction of 64 images of 224 px by
    EfficientNet-Lite0 was 2.3 times slower.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: blocks up to 1 GiB come from the heap
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: the heap shrinks only beyond 2 GiB of free top


def choose_device(name: str) -> torch.device:
    """Returns the device of this name. `auto` is CUDA if available, otherwise the CPU.

    Convolutions in fp32 are then computed in fp32. By default, PyTorch rounds their inputs to the ten bits of TF32 on a
    GPU: too coarse for finite differences, and for limits that the model file applies on a CPU.

    Raises:
        UserError: the name is invalid or the device is absent.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"train.device={name} can't be used here ({reason}): set it to auto or cpu") from None
    return device


def check_device(name: str) -> None:
    """Checks that `train.device` exists, without use of a GPU.

    Raises:
        UserError: the device is absent.
    """
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        choose_device(name)


def _seconds(model: nn.Module, step: Step, x: Tensor, choice: Placement, frozen: str) -> float:
    """Returns the seconds of the faster of two steps, after one warm-up step.

    The result is infinite if the step fails, as with an unsupported operator, or if the loss is not finite.
    """
    try:
        copied = choice.place(copy.deepcopy(model))
        train_mode(copied, frozen)
        layout = torch.channels_last if choice.channels_last else torch.contiguous_format
        x = x.to(choice.device).to(memory_format=layout)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with choice.autocast():
                loss = step(copied, x)
            loss.backward()
            finite = bool(torch.isfinite(loss))  # also waits for the device
            times.append(time.perf_counter() - start)
        return min(times[1:]) if finite else float("inf")
    except (RuntimeError, NotImplementedError, ValueError):
        return float("inf")


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bf16. Without them, PyTorch computes convolutions in a slow reference loop.

    On an AVX2 CPU, a training step of EfficientNet-Lite0 at 96 px takes 14 times as long as in fp32, and one of AlexNet
    for 32 px 19 times.
    """
    if device.type != "cpu":
        return True
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # PyTorch without oneDNN
        return False


LEAST_CHANNELS = 16  # per group; oneDNN computes these convolutions in blocks of 8 or 16 input channels


def unsafe_convolution(model: nn.Module) -> str | None:
    """Returns the name of a layer whose training in channels-last layout on a CPU can crash, or None.

    oneDNN, with which PyTorch computes convolutions on CPUs, writes past the end of its workspace in the weight
    gradient of a 1 × 1 convolution with a stride and few input channels (https://github.com/uxlfoundation/oneDNN, issue
    6035). RepVGG has one for the image. The process then ends without a message, hangs, or computes wrong gradients.
    """
    for name, layer in model.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and set(layer.kernel_size) == {1}
            and max(layer.stride) > 1
            and layer.in_channels // layer.groups < LEAST_CHANNELS
        ):
            return name
    return None


def choose(
    config: Train, model: nn.Module, step: Step, x: Tensor, frozen: str = "none"
) -> tuple[Placement, dict[str, float]]:
    """Returns the fastest placement for `step(model, x) -> loss` among those that the config allows.

    The values of each setting that is `auto` are timed on a copy of the model with x `[B, 3, H, W]`, in train mode with
    `model.freeze` as `frozen`. The model and the random state do not change. fp32 with contiguous layout is kept unless
    another placement is at least a tenth faster. bf16 is less precise and must also be a tenth faster than fp32 with
    channels-last layout.

    On a CPU without instructions for bf16, `auto` does not try it; a config that asks for it gets a message.
    Channels-last layout is not used on a CPU for a network with an `unsafe_convolution`; a message says so.

    Returns:
        the placement, and the seconds per step of each candidate (empty if there was only one).
    """
    device = choose_device(config.device)
    fast = computes_bf16(device)
    precisions = ["fp32", *["bf16"] * fast] if config.precision == "auto" else [config.precision]
    if precisions == ["bf16"] and not fast:
        print(
            "This CPU has no instructions for bf16, so a step can take twenty times as long as with "
            "train.precision=fp32.",
            flush=True,
        )
    layouts = [False, True] if config.channels_last == "auto" else [config.channels_last]
    layer = unsafe_convolution(model) if device.type == "cpu" and True in layouts else None
    if layer is not None:
        layouts = [False]
        print(
            f"Channels-last layout is not used on the CPU: training {layer}, a 1 × 1 convolution with a stride and few "
            "input channels, can crash PyTorch in this layout.",
            flush=True,
        )
    ways = [Placement(device, p, c) for p in precisions for c in layouts]
    if len(ways) == 1:
        return ways[0], {}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = {way: _seconds(model, step, x, way, frozen) for way in ways}
    price = {way: 1.1 ** ((way != ways[0]) + (way.precision != precisions[0])) for way in ways}
    best = min(ways, key=lambda way: seconds[way] * price[way])
    names = {f"{w.precision}{' channels-last' if w.channels_last else ''}": s for w, s in seconds.items()}
    return best, names


def environment() -> dict[str, str]:
    """Returns the library versions, the platform and the processors, for reports of measured times."""
    import albumentations
    import monai
    import torchvision

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # torch.load with weights_only=True refuses a TorchVersion
        "torchvision": str(torchvision.__version__),
        "monai": monai.__version__,
        "albumentations": albumentations.__version__,
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }
