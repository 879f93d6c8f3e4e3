"""Weights of a backbone from files of several kinds."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dermrw.config import Model
from dermrw.errors import UserError
from dermrw.models import Head, build_model
from dermrw.weights import encoder_state, safetensors_bytes


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    torch.manual_seed(1)
    return build_model(Model(backbone="mobilenet_v3_small", weights="none"), 3)[0]


def load(path: Path, backbone: str = "mobilenet_v3_small", **options: str) -> tuple[nn.Module, str]:
    return build_model(Model(backbone=backbone, weights=str(path), **options), 7)


def assert_loaded(model: nn.Module, donor: nn.Module) -> None:
    theirs, head = donor.state_dict(), Head(model).name
    assert head == "classifier.3" and Head(model).linear.out_features == 7
    assert all(torch.equal(t, theirs[n]) for n, t in model.state_dict().items() if not n.startswith(f"{head}."))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "encoder.", "module.model.encoder."])
@pytest.mark.parametrize("form", ["state_dict", "checkpoint", "safetensors", "encoder"])
def test_a_prefix_and_a_head_are_left_out(
    form: str, prefix: str, donor: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state: dict[str, Tensor] = donor.state_dict()
    if form == "encoder":
        state = encoder_state(donor, "classifier.3")
    state = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    path = tmp_path / "w.bin"  # the content tells the form
    if form in ("safetensors", "encoder"):
        save_file(state, path)
    else:
        state["loss.margin"] = torch.zeros(3)
        torch.save({"epoch": 3, "state_dict": state} if form == "checkpoint" else state, path)
    model, origin = load(path)
    assert_loaded(model, donor)
    assert origin.startswith("weights from w.bin (sha256 ")
    said = capsys.readouterr().out
    assert said.count("\n") == (form != "encoder" or prefix != "")
    assert ("classifier.3.weight" in said) == (form != "encoder")
    assert (f"prefix {prefix!r}" in said) == (prefix != "")


def test_a_network_of_our_own_takes_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    donor, _ = build_model(Model(backbone="small_cnn", weights="none"), 4)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    model, _ = load(tmp_path / "w.pth", "small_cnn", head="cosine")
    assert torch.equal(model[0].weight, donor[0].weight)  # type: ignore[index]
    assert Head(model).linear.out_features == 7


def test_batch_norm_without_its_counter(donor: nn.Module, tmp_path: Path) -> None:
    save_file({n: t for n, t in donor.state_dict().items() if "num_batches" not in n}, tmp_path / "w")
    assert_loaded(load(tmp_path / "w")[0], donor)


def test_mistakes_are_one_sentence(donor: nn.Module, tmp_path: Path) -> None:
    state = donor.state_dict()
    files = {
        "lacks 2": ({n: t for n, t in state.items() if not n.startswith("features.0.0") and n[9:] != "0.1.bias"}, {}),
        "of shape": ({**state, "features.0.0.weight": torch.zeros(16, 1, 3, 3)}, {}),
        "that the network lacks, such as features.13.weight": ({**state, "features.13.weight": torch.zeros(2)}, {}),
        "of resnet18: set model.backbone=resnet18": (state, {"backbone": "resnet18"}),
    }
    for message, (tensors, metadata) in files.items():
        (tmp_path / "w").write_bytes(safetensors_bytes(tensors, metadata))
        with pytest.raises(UserError, match=message) as caught:
            load(tmp_path / "w")
        assert "\n" not in str(caught.value) and "model.weights=" in str(caught.value)
    content = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(content[:-100])
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "w")
    torch.save([1, 2], tmp_path / "w")
    with pytest.raises(UserError, match="contains no state dict"):
        load(tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to(torch.int8), "is of type int8, such as that of a quantized network"),
        (lambda t: t.to(torch.complex64), "is of type complex64"),
        (lambda t: t * torch.nan, "has values that are not finite"),
        (lambda t: t.to_sparse(), "holds no dense numbers"),
    ],
)
def test_tensors_that_are_no_weights(change: Callable[[Tensor], Tensor], said: str, tmp_path: Path) -> None:
    state = build_model(Model(backbone="small_cnn", weights="none"), 4)[0].state_dict()
    name = next(iter(state))
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"has {re.escape(name)}, which {said}"):
        load(tmp_path / "w.pth", "small_cnn")
    torch.save({k: t.half() if t.is_floating_point() else t for k, t in state.items()}, tmp_path / "w.pth")
    load(tmp_path / "w.pth", "small_cnn")
