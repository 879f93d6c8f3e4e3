"""Training of the head on embeddings that are computed once."""

import copy
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dermrw.config import Config, Model, dump, load_config
from dermrw.datasets.augment import augmenter, example_seed
from dermrw.datasets.dataset import Splits, load_splits
from dermrw.errors import UserError
from dermrw.evaluation.predict import load_best
from dermrw.images.preprocess import Framing, evaluation_pixels, resized_pixels
from dermrw.models import Head, build_model, embed, freeze
from dermrw.network_input import IMAGENET, normalisation_of, to_input
from dermrw.objectives import Batch, build_objective
from dermrw.training import embeddings as module
from dermrw.training import loop
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.device import Placement
from dermrw.training.embeddings import embed_pixels, embeddings_key, number_of_views, view_reader, without_head
from dermrw.training.head_loop import HeadLoop
from dermrw.training.optim import build_optimizer
from dermrw.training.run_folder import read_log, read_split
from dermrw.training.train import train

SETTINGS = [
    "name=tiny", "data.name=sample", "data.size=32", "data.meta=rule", "model.backbone=mobilenet_v3_small",
    "model.weights=none", "model.freeze=backbone", "train.epochs=2", "train.lr=1e-2", "train.batch_size=16",
    "train.precision=fp32", "train.channels_last=false", "train.device=cpu",
]  # fmt: skip


def config(sample: Path, *overrides: str) -> Config:
    return load_config(None, [*SETTINGS, f"data.root={sample}", *overrides])


def stored(run: Path) -> Path:
    (file,) = run.glob("embeddings-*.npy")
    return file


def assert_same_end(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        a, b = (load_checkpoint(run / name)["model"] for run in (one, other))
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert read_log(one) == read_log(other)


@pytest.fixture(scope="module")
def whole(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train(config(sample, "train.average=0.9", "model.embedding_views=3"), tmp_path_factory.mktemp("a") / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "backbone"),
    [
        ("erm", "small_cnn"),
        ("reweight", "small_cnn"),
        ("noise_weights", "small_cnn"),
        ("meta_weight_net", "small_cnn"),
        ("reweight", "mobilenet_v2"),  # with dropout before the head
    ],
)
def test_the_head_ends_as_in_the_whole_network(objective: str, backbone: str) -> None:
    """The whole network with its backbone frozen and in eval mode, and the head alone: same weights and parameters."""
    asked = load_config(None, [f"model.backbone={backbone}", "model.weights=none", f"objective={objective}"])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 60)
    x, meta_x = torch.from_numpy(rng.normal(size=(60, 3, 32, 32))), torch.from_numpy(rng.normal(size=(14, 3, 32, 32)))
    y, meta_y = torch.from_numpy(labels), torch.arange(14) % 7
    torch.manual_seed(0)
    network, _ = build_model(asked.model, 7)
    network = network.double().eval()
    with torch.no_grad():  # untrained batch norm lets the embeddings of all images be almost equal
        embed(network, x)
        for norm in [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]:
            norm.train()
            norm.momentum = None
        network(x)
    network.eval()
    freeze(network, "backbone")
    ends = []
    for on_embeddings in (False, True):
        own = copy.deepcopy(network)
        model: nn.Module = own
        inputs, meta_inputs = x, meta_x
        if on_embeddings:
            inputs, meta_inputs = embed(own, x), embed(own, meta_x)
            model = Head(own).train()
        else:
            own.eval()
            for layer in own.modules():
                if isinstance(layer, nn.Dropout):
                    layer.train()
        steps = 8
        method = build_objective(asked, labels, 7, steps)
        if objective == "noise_weights":
            method.warm_up = 2  # type: ignore[attr-defined]
        optimizer = build_optimizer(asked.train, model)
        torch.manual_seed(1)
        for rows in np.array_split(np.tile(np.arange(60), 2), steps):
            index = torch.from_numpy(rows)
            loss, _ = method(model, Batch(inputs[index], y[index], index, meta_inputs, meta_y, len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights = method.example_weights()
        ends.append((own.state_dict(), np.zeros(1) if weights is None else weights))
    (one, weights), (other, others) = ends
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-10, atol=1e-12, msg=name)
    np.testing.assert_allclose(others, weights, rtol=1e-5)  # recorded in float32
    if objective == "reweight":
        assert 0 < (weights == 0).mean() < 1  # the weights tell the examples apart


@pytest.mark.slow
def test_the_checkpoint_holds_the_whole_network(whole: Path, sample: Path) -> None:
    asked = load_config(whole / "config.yaml")
    splits = load_splits(asked.data, sample, read_split(whole))
    model, _ = load_best(whole, asked, splits.classes)
    torch.manual_seed(0)
    start, _ = build_model(asked.model, 7)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}
    assert moved == {"classifier.3.weight", "classifier.3.bias"}
    pixels = np.stack([evaluation_pixels(source, 32) for source in splits.validation.sources])
    with torch.no_grad():
        logits = model.eval()(to_input(torch.from_numpy(pixels), torch.device("cpu"), normalisation_of(model))).numpy()
    n = 3 * len(splits.train)
    rows = np.load(stored(whole))[n : n + len(pixels)]
    with torch.no_grad():
        of_embeddings = Head(model).eval()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(of_embeddings, logits, atol=1e-4)
    assert [row["epoch"] for row in read_log(whole) if "validation" in row] == [1, 2]
    assert "class_weight" in read_log(whole)[0] and (whole / "weights.csv").exists()
    assert not list(whole.glob(".embeddings*"))


def test_the_first_view_is_not_augmented(whole: Path, sample: Path) -> None:
    asked = load_config(whole / "config.yaml")
    splits = load_splits(asked.data, sample, read_split(whole))
    torch.manual_seed(0)
    network, _ = build_model(asked.model, 7)
    n, row = len(splits.train), 5
    source, augment = splits.train.sources[row], augmenter("dermoscopy", 32)
    assert augment is not None
    views = [evaluation_pixels(source, 32)]
    views += [augment(resized_pixels(source, 32), example_seed(0, view, row)) for view in (1, 2)]
    x = to_input(torch.from_numpy(np.stack(views)), torch.device("cpu"), normalisation_of(network))
    expected = embed(network, x).numpy()
    np.testing.assert_allclose(np.load(stored(whole))[[row, n + row, 2 * n + row]], expected, atol=1e-5)


def test_embeddings_have_the_normalisation_of_the_network() -> None:
    """A network with its own mean and deviation: of EfficientNet-Lite, 0.5."""
    network = build_model(Model(backbone="efficientnet_lite0", weights="none"), 7)[0].eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = embed(network, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    found = embed_pixels(without_head(network), pixels, Placement(torch.device("cpu"), "fp32", False))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("framing", [Framing("find"), Framing("none", "whole")])
def test_views_have_the_framing_of_the_config(framing: Framing, sample: Path) -> None:
    splits = load_splits(config(sample).data, sample)
    read, augment = view_reader(32, "dermoscopy", 0, framing), augmenter("dermoscopy", 32)
    assert augment is not None
    source = splits.train.sources[5]
    views = read(splits.train, 5, 2)
    assert np.array_equal(views[0], evaluation_pixels(source, 32, framing))
    assert np.array_equal(views[1], augment(resized_pixels(source, 32, framing), example_seed(0, 1, 5)))
    network, _ = build_model(config(sample).model, 7)
    choice = Placement(torch.device("cpu"), "fp32", False)
    settings = [f"data.field_of_view={framing.field_of_view}", f"data.crop={framing.crop}"]
    keys = {embeddings_key(network, splits, config(sample, *more), choice) for more in ([], settings)}
    assert len(keys) == 2


@pytest.mark.slow
def test_a_pass_and_a_training_that_are_interrupted_end_the_same(
    whole: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(sample, "train.average=0.9", "model.embedding_views=3", "train.checkpoint_seconds=1e-9")
    run, calls = tmp_path / "run", [0]

    def counting(*arguments: object) -> np.ndarray:
        calls[0] += 1
        if calls[0] == stop_at:
            raise RuntimeError("power cut")
        return embed_pixels(*arguments)  # type: ignore[arg-type]

    embed_pixels = module.embed_pixels
    monkeypatch.setattr(module, "embed_pixels", counting)
    stop_at = 4
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, run)
    assert not list(run.glob("embeddings-*")) and not (run / "last.pt").exists()
    calls[0], stop_at = 0, 0
    step, taken = loop.Loop.train_step, [0]

    def crashing(self: HeadLoop, *arguments: Any) -> dict:
        taken[0] += 1
        if taken[0] == 9:
            raise RuntimeError("power cut")
        return step(self, *arguments)

    monkeypatch.setattr(loop.Loop, "train_step", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, run)
    first = calls[0]
    tasks = module.plan(load_splits(asked.data, sample, read_split(run)), 3)
    assert 0 < first < len(tasks), "the finished batches were computed again"
    monkeypatch.setattr(loop.Loop, "train_step", step)
    train(asked, run)
    assert calls[0] == first
    assert stored(run).read_bytes() == stored(whole).read_bytes()
    assert_same_end(whole, run)


def test_embeddings_of_other_images_weights_or_settings_are_not_used(sample: Path) -> None:
    asked = config(sample)
    splits = load_splits(asked.data, sample)
    network, _ = build_model(asked.model, 7)
    placement = module.Placement(torch.device("cpu"), "fp32", False)

    def key(asked: Config = asked, splits: Splits = splits) -> str:
        return module.embeddings_key(network, splits, asked, placement)

    first = key()
    assert key() == first and key(config(sample, "train.lr=0.5", "objective=erm", "train.average=0.5")) == first
    others = [("data.size=48",), ("model.embedding_views=2",), ("train.seed=1",), ("data.augment=strong",)]
    keys = [key(config(sample, *other)) for other in others]
    assert key(config(sample, "data.augment=none", "train.seed=1")) == key(config(sample, "model.embedding_views=1"))
    keys.append(key(splits=splits._replace(train=replace(splits.train, sources=splits.train.sources[::-1]))))
    path = Path(splits.meta.sources[0])
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    keys.append(key())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with torch.no_grad():
        Head(network).linear.weight.add_(1)
        assert key() == first  # the head has no part in them
        next(network.parameters())[0] += 1
    keys.append(key())
    assert len({first, *keys}) == 8
    for normalisation in (
        IMAGENET._replace(mean=(0.5, 0.5, 0.5)),
        IMAGENET._replace(colour_constancy="shades_of_grey"),
    ):
        network.normalisation = normalisation  # type: ignore[assignment]
        keys.append(key())
    assert len({first, *keys}) == 10


def test_runs_in_one_folder_share_embeddings(
    whole: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "embed_pixels", None)
    other = train(config(sample, "objective=mixup", "model.embedding_views=3"), whole.parent / "other")
    assert "The embeddings are those of" in capsys.readouterr().out
    assert stored(other).samefile(stored(whole))


def test_a_damaged_file_is_computed_again(sample: Path, tmp_path: Path) -> None:
    asked = config(sample, "objective=erm", "train.epochs=1", "model.embedding_views=1")
    run = train(asked, tmp_path / "run")
    content = stored(run).read_bytes()
    stored(run).write_bytes(content[:-8])
    (run / "embeddings-0123456789abcdef.npy").touch()
    (run / "last.pt").unlink()
    train(asked, run)
    assert stored(run).read_bytes() == content


@pytest.mark.parametrize("change", ["normalisation", "rounding", "older version"])
def test_a_head_is_not_resumed_on_other_embeddings(
    change: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(sample, "objective=erm", "model.embedding_views=1", "train.checkpoint_seconds=1e-9")
    run, step, taken = tmp_path / "run", loop.Loop.train_step, itertools.count()

    def crashing(self: HeadLoop, *arguments: Any) -> dict:
        if next(taken) == 3:
            raise RuntimeError("power cut")
        return step(self, *arguments)

    monkeypatch.setattr(loop.Loop, "train_step", crashing)
    with pytest.raises(RuntimeError, match="power cut"):
        train(asked, run)
    stored(run).unlink()
    embed_pixels = module.embed_pixels

    def other(backbone: nn.Module, *arguments: Any) -> np.ndarray:
        if change == "normalisation":
            backbone.normalisation = IMAGENET._replace(mean=(0.5, 0.5, 0.5))  # type: ignore[assignment]
        return embed_pixels(backbone, *arguments) * np.float32(1 + 1e-5 * (change == "rounding"))

    monkeypatch.setattr(module, "embed_pixels", other)
    if change == "older version":
        state = torch.load(run / "last.pt", weights_only=True)
        del state["sample"]
        torch.save(state, run / "last.pt")
    if change == "rounding":
        train(asked, run)
        return
    with pytest.raises(UserError, match=r"last\.pt was trained on other embeddings .*: start a new run"):
        train(asked, run)


def test_a_full_disk(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermrw.files.free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"the embeddings need 0\.0 GB at .*run, which has"):
        train(config(sample), tmp_path / "run")
    assert not list((tmp_path / "run").glob(".embeddings*"))


def test_views_without_augmentation_are_one() -> None:
    frozen = ("model.freeze=backbone", "train.first_share=0.5")
    assert number_of_views(load_config(None, [*frozen, "data.augment=none"])) == 1
    assert load_config(None, frozen).first_epochs == 0
    assert load_config(None, [*frozen, "model.embedding_views=0"]).first_epochs == 15


def test_a_run_that_is_older_than_embeddings_is_repeated_as_it_was(tmp_path: Path) -> None:
    text = dump(load_config(None, ["model.freeze=backbone"]))
    (tmp_path / "now.yaml").write_text(text)
    later = ("embedding_views", "colour_constancy", "keep_head")
    (tmp_path / "then.yaml").write_text(
        "".join(t for t in text.splitlines(True) if t.split(":")[0].strip() not in later)
    )
    (tmp_path / "short.yaml").write_text("model: {freeze: backbone}")
    views = [load_config(tmp_path / f"{n}.yaml").model.embedding_views for n in ("now", "then", "short")]
    assert views == [4, 0, 4]


def test_several_processes_compute_the_same_embeddings(whole: Path, sample: Path, tmp_path: Path) -> None:
    """Each process has its part of the batches; here they take turns."""
    asked = load_config(whole / "config.yaml")
    splits = load_splits(asked.data, sample, read_split(whole))
    torch.manual_seed(0)
    network, _ = build_model(asked.model, 7)
    tasks = module.plan(splits, 3)
    assert [t.start for t in tasks if t.images is splits.train] == list(range(0, len(splits.train), 10))
    shape = np.load(stored(whole), mmap_mode="r").shape
    target, done = np.zeros(shape, np.float32).view(np.memmap), np.zeros(len(tasks), np.uint8).view(np.memmap)
    for array in (target, done):
        array.flush = lambda: None  # type: ignore[method-assign]
    placement = module.Placement(torch.device("cpu"), "fp32", False)
    torch.set_num_threads(2)  # two threads compute the tasks, with the same result
    for rank in range(3):
        job = module.Job(rank, 3)
        module._compute(tasks, job.part(np.arange(len(tasks))), target, done, network, asked, placement, job)
    assert torch.get_num_threads() == 2
    assert done.all() and np.array_equal(target, np.load(stored(whole)))
    assert list(itertools.chain(*(module.Job(r, 3).part(np.arange(7)) for r in range(3)))) == list(range(7))


@pytest.mark.slow
def test_the_label_posterior_is_that_of_the_initial_network(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head alone and the whole network compute it from the same embeddings; no file of them is left behind."""
    noisy = ["objective=label_posterior", "data.noise_rate=0.3", "train.epochs=1"]
    head = train(config(sample, *noisy, "model.embedding_views=1"), tmp_path / "a" / "head")
    network = train(config(sample, *noisy, "model.freeze=none"), tmp_path / "b" / "network")
    assert capsys.readouterr().out.count("Estimated label noise") == 2
    one, other = pd.read_csv(head / "weights.csv"), pd.read_csv(network / "weights.csv")
    assert (one["image_id"] == other["image_id"]).all()
    np.testing.assert_allclose(one["weight"], other["weight"], rtol=1e-4)
    wrong = one["dx"] != one["label"]
    assert one["weight"][wrong].mean() < 0.5 * one["weight"][~wrong].mean()
    assert len(list(head.glob("*embeddings*"))) == 1 and not list(network.glob("*embeddings*"))
