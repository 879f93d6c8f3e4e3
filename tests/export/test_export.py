"""The model file: its resize against Pillow, its map against blanking by hand, its outputs against torch."""

import copy
import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.models import ConvNeXt, EfficientNet, ResNet
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.resnet import BasicBlock

from dermrw.config import Model, load_config
from dermrw.datasets.ham10000 import read_ham10000
from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.decisions.refusal import CHECKS
from dermrw.diagnoses import COLUMNS, DX, HAM_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.calibration import EqualPrevalence
from dermrw.evaluation.image_checks import Checks
from dermrw.evaluation.ood_score import Familiarity, Watch, describe, middle
from dermrw.images.preprocess import Framing, Interpolation, center_crop, evaluation_pixels, resize
from dermrw.inference.classifier import Classifier
from dermrw.inference.known_images import image_hash
from dermrw.inference.model_file import ModelInfo, Score
from dermrw.inference.shipped import shipped_model
from dermrw.models import backbones, build_model
from dermrw.network_input import IMAGENET, normalisation_of, to_input
from dermrw.reports.report_schema import DefinedReport
from dermrw.reports.report_text import FAIR_SKIN, SKIN_TONE
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.run_folder import read_split
from export.__main__ import checks_of, export, main, no_triage_reason
from export.backbone_head import _ClassToken, cut, logits_and_map
from export.build import build, check
from export.network import Exported
from export.pillow_resize import resize_graph
from export.report import report_of

FAMILIES = [
    "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "densenet121", "mnasnet0_5",
    "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "maxvit_t", "vgg11_bn", "alexnet",
    "small_cnn", "cifar_alexnet",
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 50])
def test_the_resize_is_pillows_to_the_bit(size: int, interpolation: Interpolation) -> None:
    graph = resize_graph(size, "square", interpolation).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    shapes = [(45, 60), (60, 45), (size, size), (2 * size, 2 * size), (16, 160), (17, 33), (301, 999), (size, size + 1)]
    for height, width in shapes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = center_crop(np.asarray(resize(Image.fromarray(image), size, interpolation)), size)
        found = session.run(None, {"images": np.stack([image, image[::-1]])})[0]
        assert np.array_equal(found[0], expected), (height, width)
        assert found.shape == (2, size, size, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 50])
def test_the_squeeze_of_the_whole_picture_is_pillows_to_the_bit(size: int, interpolation: Interpolation) -> None:
    model = resize_graph(size, "whole", interpolation)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    shapes = [(45, 60), (60, 45), (size, size), (2 * size, 2 * size), (450, 600), (16, 160), (160, 17), (33, 66),
              (33, 67), (301, 999), (size, size + 1)]  # fmt: skip
    for height, width in shapes:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = session.run(None, {"images": np.stack([image, image[::-1]])})[0]
        assert np.array_equal(found[0], evaluation_pixels(image, size, Framing("none", "whole", interpolation))), (
            height,
            width,
        )
        assert found.shape == (2, size, size, 3)


def network(backbone: str, size: int) -> nn.Module:
    """A network of this name as `seasoned` returns it."""
    torch.manual_seed(0)
    return seasoned(build_model(Model(backbone=backbone, weights="none"), 7)[0], size)


def seasoned(model: nn.Module, size: int) -> nn.Module:
    """The network with batch norm that has seen something and a last layer that is not zero, in eval mode."""
    nn.init.normal_([m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight, std=0.3)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, size, size))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_map_is_what_blanking_a_position_takes_away(backbone: str) -> None:
    size = 224 if backbone == "maxvit_t" else 64
    if backbone == "cifar_alexnet":
        size = 32
    model = network(backbone, size)
    parts = cut(model)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits, found = logits_and_map(parts, x)
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)
        features = parts.features(x)
        i, j = found.shape[2] - 1, 0
        features[:, :, i, j] = 0
        blanked = parts.head(features.mean((2, 3)) if parts.pooled else features)
    scale = found.abs().max() + logits.abs().max()
    torch.testing.assert_close(found[:, :, i, j] / scale, (logits - blanked) / scale, rtol=0, atol=1e-5)


def test_the_map_of_a_linear_head_is_zhous() -> None:
    model = network("resnet18", 64)
    with torch.no_grad():
        _, found = logits_and_map(cut(model), torch.ones(1, 3, 64, 64))
        features = cut(model).features(torch.ones(1, 3, 64, 64))
    weight = model.fc.weight  # type: ignore[union-attr]
    expected = torch.einsum("cd,ndhw->nchw", weight, features) / features[0, 0].numel()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_vision_transformers_map_hides_patches_from_the_class_token() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 3, 4, 24, 48, num_classes=7).double().eval()
    nn.init.normal_(model.heads[-1].weight)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        logits, found = logits_and_map(cut(model), x)
        torch.testing.assert_close(logits, model(x))
        tokens, head = cut(model).features(x), cut(model).head
        assert isinstance(head, _ClassToken) and found.shape == (2, 7, 4, 4)
        seen = [0, *(k for k in range(1, 17) if k != 1 + 4 * 2 + 3)]
        torch.testing.assert_close(found[:, :, 2, 3], logits - head(tokens[:, seen]))


def exported(model: nn.Module, backbone: str, size: int, folder: Path, views: int = 1) -> float:
    """Builds the model file of a network and compares it with torch."""
    calibration = EqualPrevalence(1.3, tuple(np.linspace(-0.3, 0.3, 7).tolist()))
    info = ModelInfo(
        name="x", created="2026-01-01", version="0", digest="0" * 64, backbone=backbone, objective="erm", origin="none",
        size=size, codes=DX, columns=COLUMNS, names=DX, temperature=1.3, offsets=calibration.offsets,
        prevalence=dict.fromkeys(DX, 1 / 7), lesion_rule="mean", licence="none",
        smallest=size // 2, limits=dict.fromkeys(CHECKS, 0.0), refused=None, coverage=0.9, thresholds=(0.1,) * 7,
        covered=None, triage=None,
        score=Score(balanced_accuracy=0.5, interval_95=(0.4, 0.6), scored_on="nothing", images=1),
    )  # fmt: skip
    names = middle(model, size)
    with torch.no_grad(), Watch(model, names) as watch:
        model(torch.randn(20, 3, size, size))
        familiarity = Familiarity.fit(names, describe(watch.take()).numpy())
    net = Exported(model, calibration, Checks(familiarity), views)
    (folder / "model.onnx").write_bytes(build(net, info).SerializeToString())
    rng = np.random.default_rng(0)
    return check(folder / "model.onnx", net, [rng.integers(0, 256, (60, 60 + i, 3), dtype=np.uint8) for i in range(7)])


def small_resnet() -> nn.Module:
    """torchvision's ResNet with one block in each stage."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7)


def small_alexnet() -> nn.Module:
    """torchvision's AlexNet with narrow linear layers, which hold nearly all of its parameters."""
    model = torchvision.models.alexnet(num_classes=7)
    for place, (inputs, outputs) in {1: (9216, 64), 4: (64, 64), 6: (64, 7)}.items():
        model.classifier[place] = nn.Linear(inputs, outputs)
    return model


def small_efficientnet() -> nn.Module:
    """Two stages of torchvision's EfficientNet."""
    stages = [MBConvConfig(1, 3, 1, 16, 16, 1, 1, 1), MBConvConfig(6, 5, 2, 16, 24, 1, 1, 1)]
    return EfficientNet(stages, 0.2, num_classes=7, last_channel=64)


def small_convnext() -> nn.Module:
    """Two stages of torchvision's ConvNeXt."""
    return ConvNeXt([CNBlockConfig(96, 192, 1), CNBlockConfig(192, None, 1)], num_classes=7)


# one network per kind of architecture, small ones where torchvision's are slow to export; the backbones themselves were
# exported by hand (docs/model_file.md), which takes minutes
@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet", "alexnet", "efficientnet", "convnext"])
def test_families_of_backbones_are_exported(backbone: str, tmp_path: Path) -> None:
    own = {
        "resnet": small_resnet,
        "alexnet": small_alexnet,
        "efficientnet": small_efficientnet,
        "convnext": small_convnext,
    }
    net = seasoned(own[backbone](), 64) if backbone in own else network(backbone, 64)
    assert exported(net, backbone, 64, tmp_path) < 1e-4
    if backbone == "convnext":
        require_quantizable(tmp_path / "model.onnx", tmp_path / "quantized.onnx")


def require_quantizable(path: Path, quantized: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    before, source = Classifier(path, "cpu"), path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quantization's own
        if before.info.weights == "fp16":
            source = quantized.with_name("whole.onnx")
            quant_pre_process(path, source, skip_symbolic_shape=True)
        quantize_dynamic(source, quantized)
    after = Classifier(quantized, "cpu")
    assert after.info == before.info and after.quantized and not before.quantized
    assert quantized.stat().st_size < 0.7 * source.stat().st_size
    probabilities = after(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    assert probabilities.shape == (1, 7) and probabilities.sum() == pytest.approx(1)


@pytest.mark.slow
def test_model_files_can_be_quantized(model_file: Path, tmp_path: Path) -> None:
    for name, path in (("exported", model_file), ("shipped", shipped_model())):
        require_quantizable(path, tmp_path / f"{name}.onnx")


def test_colour_constancy_is_inside_the_graph(tmp_path: Path) -> None:
    """A picture under a warmer light has the same answer, without any step before the graph, but other checks."""
    net = network("small_cnn", 64)
    lesion = np.asarray(draw_lesion("mel", np.random.default_rng(0), np.random.default_rng(1), 60, 80)) * 0.7
    warm = np.clip(np.rint(lesion * np.array([1.15, 1.0, 1 / 1.15])), 0, 255)
    both = np.stack([lesion.astype(np.uint8), warm.astype(np.uint8)])
    change, checks = {}, {}
    for key in ("none", "shades_of_grey"):
        torch.manual_seed(0)  # the familiarity of `exported` is fitted to random maps
        net.normalisation = IMAGENET._replace(colour_constancy=key)  # type: ignore[assignment]
        assert exported(net, "small_cnn", 64, tmp_path, views=4) < 1e-4
        (plain, cast), checks[key] = Classifier(tmp_path / "model.onnx", "cpu").run(both, "probabilities", "checks")
        change[key] = np.abs(plain - cast).max()
    assert change["shades_of_grey"] < 1e-3 and change["none"] > 20 * change["shades_of_grey"]
    np.testing.assert_allclose(checks["shades_of_grey"], checks["none"], rtol=1e-3, atol=1e-3)
    assert np.abs(checks["none"][0] - checks["none"][1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 8])
def test_a_model_of_several_views_answers_alike_for_each(number: int, tmp_path: Path) -> None:
    """The file's probabilities are those of the mean logits, by NumPy's turns and flips and the network alone."""
    net = network("small_cnn", 64)
    assert exported(net, "small_cnn", 64, tmp_path, views=number) < 1e-4
    classifier = Classifier(tmp_path / "model.onnx", "cpu")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    turned = [np.rot90(p, k) for p in (picture, picture[:, ::-1])[: number // 4] for k in range(4)]
    x = to_input(torch.from_numpy(np.stack(turned)), torch.device("cpu"), normalisation_of(net))
    with torch.no_grad():
        logits = net.double()(x.double()).mean(0).numpy()
    offsets = np.linspace(-0.3, 0.3, 7)
    expected = np.exp(logits / 1.3 + offsets)
    (found,) = classifier.run(picture[None], "probabilities")
    np.testing.assert_allclose(found[0], expected / expected.sum(), atol=1e-5)
    (of_last,) = classifier.run(np.ascontiguousarray(turned[-1])[None], "probabilities")
    np.testing.assert_allclose(of_last, found, atol=1e-5)


@pytest.mark.slow
def test_a_vision_transformer_is_exported(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 3, 4, 24, 48, num_classes=7).eval()
    nn.init.normal_(model.heads[-1].weight)
    assert exported(model, "vit", 32, tmp_path) < 1e-4


@pytest.mark.slow
def test_every_backbone_has_a_family() -> None:
    """Their classes are all known to `cut`; nothing is computed."""
    with torch.device("meta"):
        for backbone in backbones():
            if backbone.startswith("regnet"):
                continue  # computes its widths with tensors; FAMILIES has one
            cut(build_model(Model(backbone=backbone, weights="none"), 7)[0])
    with pytest.raises(TypeError, match="Identity"):
        cut(nn.Identity())


def test_the_file_agrees_with_torch_on_pictures_of_any_size(run: Path, model_file: Path) -> None:
    classifier = Classifier(model_file)
    report = json.loads((run / "report.json").read_text())
    config = load_config(run / "config.yaml")
    model, _ = build_model(config.model.model_copy(update={"weights": "none"}), 7)
    model.load_state_dict(load_checkpoint(run / "best.pt")["model"])
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(40, 70), (32, 32), (90, 33)]]
    pixels = torch.from_numpy(np.stack([evaluation_pixels(p, 32) for p in pictures]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = model.eval()(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    expected = EqualPrevalence.from_dict(report["calibration"])(logits.numpy())
    np.testing.assert_allclose(classifier(pictures), expected, rtol=0, atol=1e-5)
    for picture, row in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(classifier.run(picture[None], "probabilities")[0][0], row, rtol=0, atol=1e-5)
        seen = classifier.explain(picture)
        assert seen.activation_map.shape == (7, 4, 4) and seen.embedding.shape == (256,)


def test_the_file_names_no_folder_of_the_machine(model_file: Path) -> None:
    """The exporter adds a stack trace to each node."""
    content = model_file.read_bytes()
    assert b'File "' not in content and str(Path(__file__).parents[2]).encode() not in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content


def test_the_metadata_tells_all(run: Path, model_file: Path) -> None:
    info = Classifier(model_file).info
    report = json.loads((run / "report.json").read_text())
    assert info.codes == ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc") and info.columns[0] == "MEL"
    assert info.score.balanced_accuracy == report["balanced_accuracy"] and info.size == 32
    assert info.temperature == report["calibration"]["temperature"] and info.prevalence == report["training_prevalence"]
    assert info.warning is not None and "drawn by dermrw" in info.warning and "Apache-2.0" in info.licence
    assert info.digest == report["checkpoint_sha256"]
    model = onnx.load(model_file)
    assert [i.name for i in model.graph.input] == ["images"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    card = (run / "MODEL_CARD.md").read_text()
    assert "Not a result" in card and f"{100 * report['balanced_accuracy']:.1f} %" in card
    by_tone = card.partition("**By estimated skin tone.**")[2].splitlines()
    assert SKIN_TONE in by_tone[0] and FAIR_SKIN not in card  # the pictures are drawn
    heading, _, *table = by_tone[2:]
    assert heading.startswith("| skin tone (estimated) | images | lesions | refused in error |")
    for line, row in zip(table, report["decided"]["by_skin_tone"], strict=False):
        assert line.startswith(f"| {row['name']} | {row['images']} | {row['lesions']} | ")
        assert line.count("|") == heading.count("|")


@pytest.mark.slow
def test_a_size_that_isnt_the_graphs_is_refused(tmp_path: Path) -> None:
    exported(network("small_cnn", 64), "small_cnn", 64, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    size = next(entry for entry in model.metadata_props if entry.key == "size")
    for size.value in ("32", "63", "65", "224"):
        onnx.save(model, tmp_path / "x.onnx")
        with pytest.raises(UserError, match=rf"x\.onnx has another input size than {size.value}"):
            Classifier(tmp_path / "x.onnx")


def test_a_file_that_disagrees_is_refused(run: Path, model_file: Path) -> None:
    model = onnx.load(model_file)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.1), tensor.name))
    onnx.save(model, run / "other.onnx")
    config = load_config(run / "config.yaml")
    net, _ = build_model(config.model.model_copy(update={"weights": "none"}), 7)
    net.load_state_dict(load_checkpoint(run / "best.pt")["model"])
    report = json.loads((run / "report.json").read_text())
    checks = Checks.load((run / "familiarity.npz").read_bytes())
    exported = Exported(net, EqualPrevalence.from_dict(report["calibration"]), checks)
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(3)]
    assert check(model_file, exported, pictures) < 1e-4
    with pytest.raises(UserError, match="differ"):
        check(run / "other.onnx", exported, pictures)


def test_checks_are_compared_relative_to_the_limit_of_their_refusal(run: Path, model_file: Path) -> None:
    """The same small difference is an error next to a small limit and none next to a large one."""
    config = load_config(run / "config.yaml")
    net, _ = build_model(config.model.model_copy(update={"weights": "none"}), 7)
    net.load_state_dict(load_checkpoint(run / "best.pt")["model"])
    report = json.loads((run / "report.json").read_text())
    checks = Checks.load((run / "familiarity.npz").read_bytes())
    checks.familiarity.mean += 1e-2 * checks.familiarity.scale
    exported = Exported(net, EqualPrevalence.from_dict(report["calibration"]), checks)
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(3)]
    with pytest.raises(UserError, match=r"differ by .* in checks"):
        check(model_file, exported, pictures)
    model = onnx.load(model_file)
    for entry in model.metadata_props:
        if entry.key == "limits":
            entry.value = json.dumps({**json.loads(entry.value), "strangeness": 1e6})
    onnx.save(model, model_file)
    assert check(model_file, exported, pictures) < 1e-4


def same_graph(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `export` take the graph of the run's model file, which takes longest to build; the metadata are new."""
    graph = onnx.load(run / "model.onnx")

    def build(_: nn.Module, info: ModelInfo) -> onnx.ModelProto:
        onnx.helper.set_model_props(graph, info.to_props())
        return graph

    monkeypatch.setattr("export.__main__.build", build)


@pytest.mark.slow
def test_a_run_that_was_trained_on_is_evaluated_anew(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    state = load_checkpoint(run / "best.pt")
    torch.save({**state, "seconds": state["seconds"] + 1}, run / "best.pt")
    shutil.rmtree(run.parent / "elsewhere", ignore_errors=True)
    same_graph(run, monkeypatch)
    export(run, [])
    assert "trained further" in capsys.readouterr().out
    (run / "report.json").write_text("{}")
    export(run, [])
    assert "no complete report yet" in capsys.readouterr().out
    config = (run / "config.yaml").read_text().replace("small_cnn", "resnet18")
    (run / "config.yaml").write_text(config)
    (run / "report.json").unlink()
    before = (run / "model.onnx").read_bytes()
    with pytest.raises(UserError, match=r"best\.pt does not contain the weights of resnet18"):
        export(run, [])
    assert (run / "model.onnx").read_bytes() == before


ABSENT = object()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("balanced_accuracy", None), ("balanced_accuracy", 5), ("interval_95", ABSENT), ("interval_95", [None, None]),
        ("classes", ABSENT), ("classes", {"a": 1}), ("classes", {}), ("calibration", "x"), ("calibration", {}),
        ("calibration.temperature", 0), ("calibration.temperature", float("nan")), ("calibration.offsets", [0.0, 0.0]),
        ("calibration.offsets", [float("inf")] * 7), ("calibration_error", ABSENT), ("lesion_rule.rule", "median"),
        ("images", ABSENT), ("epoch", ABSENT), ("training_prevalence", {"mel": 1.0}), ("scored_on", 5),
        ("classes.mel.auc", "high"), ("checkpoint_sha256", ABSENT), ("size", ABSENT),
    ],
)  # fmt: skip
def test_a_report_that_is_not_whole_is_made_anew(
    run: Path, key: str, value: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((run / "report.json").read_text())
    odd: Any = copy.deepcopy(whole)
    inner = odd
    *above, last = key.split(".")
    for part in above:
        inner = inner[part]
    inner[last] = value
    if value is ABSENT:
        del inner[last]
    (run / "report.json").write_text(json.dumps(odd))
    config, before = load_config(run / "config.yaml"), (run / "model.onnx").read_bytes()
    monkeypatch.setattr("export.report.evaluate", lambda *_: whole)
    assert report_of(run, config, HAM_CLASSES, []).balanced_accuracy == whole["balanced_accuracy"]
    assert "no complete report yet" in capsys.readouterr().out
    monkeypatch.setattr("export.report.evaluate", lambda *_: odd)
    with pytest.raises(UserError, match="can't be exported"):
        export(run, [])
    assert (run / "model.onnx").read_bytes() == before


def test_checks_and_report_of_two_evaluations_are_refused(run: Path) -> None:
    path = run / "familiarity.npz"
    content = path.read_bytes()
    with np.load(path) as arrays:
        np.savez(
            path, **{name: 2 * arrays[name] if arrays[name].dtype.kind == "f" else arrays[name] for name in arrays}
        )
    with pytest.raises(UserError, match=r"not of the evaluation that wrote report\.json\): .* `make eval RUN="):
        export(run, [])
    path.write_bytes(content)
    report = json.loads((run / "report.json").read_text())
    assert report.pop("checks_sha256") == hashlib.sha256(content).hexdigest()
    (run / "report.json").write_text(json.dumps(report))  # of an earlier version
    config = load_config(run / "config.yaml")
    report = report_of(run, config, HAM_CLASSES, [])
    checks_of(run, config, report)
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays if name != "own_colours"})  # of 28 November 2026
    checks_of(run, config, report)
    changed = config.model_copy(
        update={"model": config.model.model_copy(update={"colour_constancy": "shades_of_grey"})}
    )
    with pytest.raises(UserError, match="on pixels with colour constancy\\): write it again with `make eval"):
        checks_of(run, changed, report)


def test_pictures_to_refuse_need_an_evaluation_with_them(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was evaluated without data\.refuse, .*: evaluate it with `dermrw eval "):
        export(run, [f"data.refuse={tmp_path}"])


@pytest.mark.parametrize(
    "change", [("size: 32", "size: 64"), ("name: reweight", "name: erm"), ("small_cnn", "resnet18")]
)
def test_a_config_that_was_changed_since_is_refused(run: Path, change: tuple[str, str]) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(*change))
    before = (run / "model.onnx").read_bytes()
    with pytest.raises(UserError, match=r"config\.yaml has .*make eval RUN="):
        export(run, [])
    assert (run / "model.onnx").read_bytes() == before


@pytest.mark.parametrize("name", ["model.onnx", "MODEL_CARD.md"])
def test_nothing_is_replaced_where_one_of_both_cant_be(run: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    other = run / ({"model.onnx", "MODEL_CARD.md"} - {name}).pop()
    before = (other.read_bytes(), sorted(run.iterdir()))
    with pytest.raises(UserError, match=f"{name} exists and is not a regular file"):
        export(run, [])
    assert (other.read_bytes(), sorted(run.iterdir())) == before


@pytest.mark.parametrize("override", ["data.rot=/x", "foo=bar", "train.epochs=3", "nonsense"])
def test_overrides_that_an_export_doesnt_take(run: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"export can.t change .* of a run: override only data\.root=FOLDER") as caught:
        export(run, [override])
    assert override in str(caught.value)


def test_a_run_with_a_long_name_is_exported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_graph(run, monkeypatch)
    long = run.rename(run.with_name("r" * 240))
    assert Classifier(export(long, [f"data.root={run}"])).info.name == long.name


def test_a_run_that_isnt_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (([], "no run in runs/"), ([str(tmp_path)], "is not a run"), (["absent"], "is not a run")):
        monkeypatch.setattr("sys.argv", ["export", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2 and said in capsys.readouterr().err


def test_python_without_torch_reads_the_file(model_file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (200, 150, 130)).save(tmp_path / "a.png")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it raises
        "from dermrw import Classifier\n"
        f"print(Classifier({str(model_file)!r})({str(tmp_path / 'a.png')!r}).shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(1, 7)"


def test_the_file_lists_its_training_images_and_not_its_test_split(run: Path, model_file: Path, sample: Path) -> None:
    known, split = Classifier(model_file, "cpu").known_images(), read_split(run)
    assert known is not None
    far = [(2**64 - 1, 2**64 - 1)] * len(split)
    assert known.match(split["image_id"].tolist(), far).tolist() == (split["split"] != "test").tolist()
    table = read_ham10000(sample).set_index("image_id")
    size = Classifier(model_file, "cpu").info.size
    for image_id in split["image_id"][split["split"] == "train"][:3]:
        hashes = image_hash(evaluation_pixels(table.loc[image_id, "path"], size))
        assert known.match(["renamed"], [hashes]).all(), image_id


def test_a_table_run_evaluated_before_the_rule_has_no_triage(run: Path) -> None:
    report = DefinedReport.model_validate_json((run / "report.json").read_text())
    fitted = report.decisions.fitted.triage
    assert fitted and fitted.validation.sensitivity.lesions < 45  # the sample is small, and keeps its threshold
    assert no_triage_reason(report) is None
    count = fitted.validation.sensitivity.lesions
    table = report.model_copy(update={"data": "table", "unit": "patients"})
    assert no_triage_reason(table) == f"only {count} malignant patients in validation; at least 45 are needed"
