"""What people really feed it: each fault is one sentence and status 2, nothing is executed, nothing whole is spoilt."""

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, command

from dermrw.config import known_keys, load_config
from dermrw.datasets.ham10000 import read_ham10000
from dermrw.errors import UserError, plain_endings
from dermrw.training.checkpoint import load_checkpoint
from dermrw.training.run_folder import sole_training
from export.__main__ import main as export_main

SMALL = [*TINY, "name=small", "data.name=sample", "data.meta=rule", "model.backbone=small_cnn", "model.weights=none"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail well; gives its sentence."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            if arguments[0] == "export":
                monkeypatch.setattr("sys.argv", list(arguments))
                export_main()
            else:
                command(monkeypatch, *arguments)
        said = capsys.readouterr().err
        assert caught.value.code == 2 and "Traceback" not in said, said
        return said[[m.start() for m in re.finditer(r"(^|(?<=[\r\n]))(dermrw|export): ", said)][-1] :]

    return run


def rewrite(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda run: change(pd.read_csv(run / name)).to_csv(run / name, index=False)


def resave(**values: object) -> Callable[[Path], object]:
    return lambda run: torch.save({**load_checkpoint(run / "best.pt"), **values}, run / "best.pt")


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text((run / name).read_text().replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no checkpoint": (lambda run: (run / "best.pt").unlink(), "best.pt"),
    "empty checkpoint": (lambda run: (run / "best.pt").write_bytes(b""), "best.pt is not a checkpoint"),
    "half a checkpoint": (lambda run: os.truncate(run / "best.pt", 5000), "best.pt is not a checkpoint"),
    "a text": (lambda run: (run / "best.pt").write_text("hello"), "best.pt is not a checkpoint"),
    "other classes": (resave(classes=["a", "b"]), "was trained on the classes"),
    "other weights": (resave(model={"x": torch.zeros(1)}), "does not contain the weights"),
    "weights of another kind": (resave(model={"x": 3}), "does not contain the weights"),
    "a number as origin": (resave(origin=3), "lacks 'origin'"),
    "no split": (lambda run: (run / "split.csv").unlink(), "split.csv can't be read"),
    "an empty split": (lambda run: (run / "split.csv").write_text(""), "split.csv can't be read"),
    "a split's header": (rewrite("split.csv", lambda t: t.head(0)), "must contain train, validation, test"),
    "a split without a test": (
        rewrite("split.csv", lambda t: t[t["split"] != "test"]),
        "must contain train, validation, test",
    ),
    "a row twice": (rewrite("split.csv", lambda t: pd.concat([t, t.head(1)])), "twice"),
    "an unknown class": (rewrite("split.csv", lambda t: t.replace({"dx": {"nv": "xx"}})), "holds the class 'xx'"),
    "an unknown part": (rewrite("split.csv", lambda t: t.replace({"split": {"test": "exam"}})), "test and meta alone"),
    "an empty cell": (rewrite("split.csv", lambda t: t.replace({"dx": {"mel": None}})), "an empty cell"),  # type: ignore[arg-type]
    "other columns": (
        rewrite("split.csv", lambda t: t.rename(columns={"dx": "diagnosis"})),
        "does not have the columns",
    ),
    "other images": (rewrite("split.csv", lambda t: t.assign(image_id="x" + t["image_id"])), "is not below"),
    "a lesion on two sides": (rewrite("split.csv", lambda t: t.assign(lesion_id="L")), "more than one part"),
    "no config": (lambda run: (run / "config.yaml").unlink(), "is not a run"),
    "an empty config": (lambda run: (run / "config.yaml").write_text(""), "config.yaml lacks data, model"),
    "binary config": (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml"),
    "another network": (replace("config.yaml", "small_cnn", "resnet18"), "does not contain the weights"),
    "an unknown network": (replace("config.yaml", "small_cnn", "resnet17"), "resnet17"),
    "an unknown key": (replace("config.yaml", "epochs:", "epoch:"), "did you mean train.epochs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["eval", "export"])
@pytest.mark.parametrize("fault", DAMAGE)
def test_damaged_runs(place: Path, run: Path, fault: str, tool: str, says: Callable[..., str],
                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    damage, sentence = DAMAGE[fault]
    for name in ("model.onnx", "report.json"):
        (run / name).unlink()
    damage(run)
    before = contents(run)
    assert sentence in says(tool, str(run))
    assert contents(run) == before


def test_an_evaluation_draws_no_sample(place: Path, run: Path, says: Callable[..., str]) -> None:
    assert "holds no sample" in says("eval", str(run), f"data.root={place / 'absent'}")
    assert not (place / "absent").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_checkpoints_with_flipped_bytes(run: Path, name: str) -> None:
    whole = (run / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(25):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, len(damaged), 30):
            damaged[place] = rng.integers(256)
        (run / name).write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_checkpoint(run / name)  # weights of a damaged zip entry may still be numbers
            except UserError as error:
                assert name in str(error) and "weights_only" not in str(error)


def test_metadata_with_flipped_cells(sample: Path, tmp_path: Path) -> None:
    table = pd.read_csv(sample / "HAM10000_metadata.csv", dtype=str)
    odd = ["", "nv", "../x", "a/b", "\x00", '"', "é", "1e9", "nan", ",,", "x" * 10_000, "=cmd()", "mel ", "MEL"]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        broken = table.copy()
        broken.iloc[int(rng.integers(len(table))), int(rng.integers(table.shape[1]))] = odd[rng.integers(len(odd))]
        if rng.random() < 0.2:
            broken = broken.drop(columns=broken.columns[int(rng.integers(broken.shape[1]))])
        broken.to_csv(tmp_path / "HAM10000_metadata.csv", index=False)
        data = bytearray((tmp_path / "HAM10000_metadata.csv").read_bytes())
        if rng.random() < 0.3:
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(256)
            (tmp_path / "HAM10000_metadata.csv").write_bytes(data)
        try:
            read_ham10000(tmp_path)
        except UserError as error:
            refused += "HAM10000_metadata.csv" in str(error)
    assert refused > 20


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key])
def test_odd_values_of_every_key(key: str) -> None:
    for value in (
        "",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e999",
        "[]",
        "{a: 1}",
        "null",
        "true",
        "abc",
        "!!python/x",
        "'",
    ):
        try:
            found = load_config(None, [f"{key}={value}"])
        except UserError as error:
            assert key.split(".")[1] in str(error) or "data.validation and data.test" in str(error)
        else:
            section, name = key.split(".")
            kept = getattr(getattr(found, section), name)
            assert not isinstance(kept, float) or np.isfinite(kept), key


@pytest.mark.slow
def test_networks_that_the_images_dont_fit(
    tmp_path: Path, sample: Path, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for backbone, size in (("vit_b_32", 64), ("maxvit_t", 64), ("alexnet", 32), ("cifar_alexnet", 48)):
        options = [f"data.root={sample}", f"model.backbone={backbone}", f"data.size={size}"]
        assert f"{backbone} can't take images of {size}" in says("train", "sample", *SMALL, *options)
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.slow
def test_one_bad_image_of_many(
    sample: Path, tmp_path: Path, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data = Path(shutil.copytree(sample, tmp_path / "ham"))
    table = read_ham10000(data)
    first, second, third = table.loc[table["dx"] == "nv", "path"].iloc[:3].map(Path)
    first.write_bytes(first.read_bytes()[:500])
    second.write_bytes(b"")
    options = ["train", "sample", *SMALL, f"data.root={data}", "--run", "runs/x"]
    said = says(*options)
    assert "2 of 200 images can't be read" in said and first.name in said and second.name in said
    assert "data.skip_unreadable=true" in said and not Path("runs/x").exists()
    third.unlink()
    assert "lacks 1 of 200 images" in says(*options)
    command(monkeypatch, *options, "data.skip_unreadable=true")
    out = capsys.readouterr().out
    assert "Left out of 200 images" in out and third.stem in out and first.name in out
    split = pd.read_csv("runs/x/split.csv")
    assert not split["image_id"].isin([first.stem, second.stem, third.stem]).any()
    command(monkeypatch, "eval", "runs/x")


@pytest.mark.slow
def test_two_trainings_into_one_run(sample: Path, tmp_path: Path, says: Callable[..., str]) -> None:
    run = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from dermrw.training.run_folder import sole_training\n"
        "with sole_training(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    options = ["train", "sample", *SMALL, f"data.root={sample}", "--run", str(run)]
    assert f"{run} is in use by another training" in says(*options)
    holder.kill()  # a killed training lets go
    holder.wait()
    with sole_training(run):
        pass
    assert not run.exists()  # nothing was trained: nothing is left


def test_a_run_folder_that_may_not_be_written_to(sample: Path, tmp_path: Path, says: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    options = ["train", "sample", *SMALL, f"data.root={sample}", "--run"]
    assert "can't be written to" in says(*options, str(tmp_path / "file"))
    assert "can't be written to" in says(*options, str(tmp_path / "file/run"))
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "can't be written to" in says(*options, str(tmp_path / "locked"))


FULL = """
import resource, signal, sys, torch
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from dermrw.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes are Linux'")
def test_a_disk_that_fills_in_the_middle_of_a_checkpoint(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the full disk: the write of the checkpoint fails half-way."""
    run = tmp_path / "run"
    options = ["train", "sample", *SMALL, f"data.root={sample}", "train.epochs=2", "--run", str(run)]

    environment = {k: v for k, v in os.environ.items() if k != "HAM10000_DIR"}
    ended = subprocess.run(
        [sys.executable, "-c", FULL, "1000000", *options], capture_output=True, text=True, env=environment,
        cwd=tmp_path, timeout=1200, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "can't be written" in ended.stderr and f"RUN={run}" in ended.stderr
    names = ["config.yaml", "images.json", "metrics.jsonl", "split.csv", "weights.csv"]
    assert sorted(p.name for p in run.iterdir()) == names
    command(monkeypatch, *options)  # there is space again
    assert load_checkpoint(run / "last.pt")["epoch"] == 2


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.ENAMETOOLONG, "shorter"),
                                                (errno.EACCES, "correct its permissions")])  # fmt: skip
def test_the_advice_fits_the_fault(number: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, plain_endings("dermrw"):
        raise OSError(number, os.strerror(number), "a\x1b[31m\udce9\nb")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and advice in said and ("free some space" in said) == (number == errno.ENOSPC)
    assert "\x1b" not in said and "\\x1b" in said
    with pytest.raises(SystemExit), plain_endings("dermrw"):
        print("\udce9")  # a name that no encoding has
        raise UserError("x\x1b[31m")
    assert "\x1b" not in capsys.readouterr().err


def test_an_environment_without_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, plain_endings("dermrw"):
        import torch_of_another_world  # noqa: F401
    sentence = "the Python package torch_of_another_world is missing: run `make install`"
    assert caught.value.code == 2 and sentence in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError), plain_endings("dermrw"):
        import dermrw.of_another_world  # noqa: F401


@pytest.mark.parametrize("name", ["best.pt", "split.csv", "report.json"])
def test_a_pipe_in_a_run(run: Path, name: str, says: Callable[..., str]) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    said = says("eval", str(run))
    assert name in said and ("is a pipe" in said or "not a regular file" in said)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on this machine")
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("train-ham", ["--run", "runs/my run"]), ("train-cifar", ["--run", "runs/my run/$name"]),
        ("eval", ["runs/my run"]), ("export", ["runs/my run"]), ("demo", ["app", "my model.onnx"]),
        ("package", ["PY=.venv/bin/python", "bash"]),
    ],
)  # fmt: skip
def test_names_with_spaces_reach_the_commands_whole(target: str, words: list[str]) -> None:
    names = ["RUN=runs/my run", *(["MODEL=my model.onnx"] if target == "demo" else [])]
    stamps = ["-o", ".venv/.ready", "-o", ".venv-demo/.ready"]  # as if all were set up
    said = subprocess.run(
        ["make", "-n", *stamps, target, *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    ).stdout
    found = shlex.split(said.replace(";", " ; "))
    assert any(found[i : i + len(words)] == words for i in range(len(found))), found
