"""`dermrw predict` over many images: several processes, killed runs that continue, flat memory, tables of paths."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command
from PIL import Image

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.errors import UserError
from dermrw.inference import predict_files, workers
from dermrw.inference.classifier import Classifier
from dermrw.inference.find_images import find_images
from dermrw.inference.image_rows import BATCH, ImageRow
from dermrw.inference.partial_rows import RowFile
from dermrw.inference.predict_files import decisions_file, partial_file, settings_digest
from dermrw.inference.verdict import Verdict

SHIPPED = Path(__file__).parents[2] / "app/model.onnx"


def folder_of_images(folder: Path, count: int, size: int = 60) -> Path:
    """Drawn lesions, among them an unreadable image, one that is refused, and two of one name."""
    (folder / "more").mkdir(parents=True)
    drawn = [
        draw_lesion(DX[i % 7], np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), size, size + 20)
        for i in range(7)
    ]
    for i in range(count - 3):
        Image.fromarray(np.roll(drawn[i % 7], i, 1)).save(folder / f"{i:05}.png")
    (folder / "00040.jpg").write_bytes(b"\xff\xd8\xff cut short")
    Image.new("RGB", (80, 60), (8, 8, 8)).save(folder / "dark.png")
    Image.fromarray(drawn[0]).save(folder / "more/00003.png")
    return folder


def contents(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), decisions_file(out).read_bytes()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a handful of images were many."""
    monkeypatch.setattr(workers, "FEW", 1)
    monkeypatch.setattr(predict_files, "FEW", 1)


@pytest.fixture
def predict(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command and returns its status."""

    def run(folder: Path, out: Path, *options: str) -> int:
        try:
            command(monkeypatch, "predict", str(model), str(folder), "--csv", str(out), *options)
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_number_of_processes(
    predict: Callable[..., int], tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of_images(tmp_path / "images", 100)
    assert predict(folder, tmp_path / "1.csv", "--workers", "1") == 2  # one image cannot be read
    single = capsys.readouterr()
    for n in (2, 3):
        assert predict(folder, tmp_path / f"{n}.csv", "--workers", str(n)) == 2
        several = capsys.readouterr()
        assert f"in {n} processes" in several.out
        assert several.err.replace(f"{n}.csv", "1.csv") == single.err
        assert contents(tmp_path / f"{n}.csv") == contents(tmp_path / "1.csv")
    ids = pd.read_csv(tmp_path / "1.csv", dtype=str)["image"].tolist()
    assert ids == [name for name in find_images([folder]).images if name != "00040.jpg"]
    assert {"00003.png", "more/00003.png", "dark"} <= set(ids) and len(ids) == 99
    assert not list(tmp_path.glob("*.partial"))


def test_few_images_stay_in_the_process_and_give_the_same_files(
    predict: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_images(tmp_path / "images", 50)
    assert predict(folder, tmp_path / "many.csv", "--workers", "2") == 2
    monkeypatch.setattr(workers, "FEW", 1)
    monkeypatch.setattr(predict_files, "FEW", 1)
    assert predict(folder, tmp_path / "few.csv", "--workers", "2") == 2
    assert contents(tmp_path / "many.csv") == contents(tmp_path / "few.csv")


def test_lesions_and_prevalence_of_many_images(
    predict: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of_images(tmp_path / "images", 60)
    names = list(find_images([folder]).images)
    (tmp_path / "l.csv").write_text("image,lesion_id\n" + "".join(f"{n},L{i % 9}\n" for i, n in enumerate(names)))
    options = "--lesions", str(tmp_path / "l.csv"), "--prevalence", "training"
    assert predict(folder, tmp_path / "memory.csv", *options) == 2
    monkeypatch.setattr(workers, "FEW", 1)
    monkeypatch.setattr(predict_files, "FEW", 1)
    monkeypatch.setattr(predict_files, "WRITTEN_AT_ONCE", 7)
    assert predict(folder, tmp_path / "file.csv", *options, "--workers", "2") == 2
    assert contents(tmp_path / "memory.csv") == contents(tmp_path / "file.csv")


def stopping(after: int) -> Callable[..., Iterator[list[ImageRow]]]:
    """`classify_files`, with Ctrl-C after some batches."""
    real = predict_files.classify_files

    def run(*arguments: object) -> Iterator[list[ImageRow]]:
        yield from islice(real(*arguments), after)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    return run


@pytest.mark.slow
@pytest.mark.parametrize("tail", [b"", b'["00064", [0.1, 0.2', b"\0" * 300, b'["other", [], null, [], null, [], ""]\n'])
def test_an_interrupted_run_continues(
    predict: Callable[..., int], tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str], tail: bytes
) -> None:
    folder, out = folder_of_images(tmp_path / "images", 120), tmp_path / "out.csv"
    assert predict(folder, tmp_path / "whole.csv", "--workers", "1") == 2
    out.write_text("precious")
    for after in (1, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(predict_files, "classify_files", stopping(after))
            capsys.readouterr()
            assert predict(folder, out, "--workers", "1") == 130
        ended = capsys.readouterr()
        assert "stopped; the same command continues" in ended.err and "Traceback" not in ended.err
        assert out.read_text() == "precious" and not decisions_file(out).exists()
    assert "Continuing after 32 of 120 images" in ended.out
    with partial_file(out).open("ab") as file:
        file.write(tail)
    assert predict(folder, out, "--workers", "2") == 2
    assert "Continuing after 64 of 120 images" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "whole.csv")
    assert not partial_file(out).exists()


def test_rows_of_other_images_are_not_taken(
    predict: Callable[..., int], tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of_images(tmp_path / "images", 70), tmp_path / "out.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_files, "classify_files", stopping(1))
        assert predict(folder, out, "--workers", "1") == 130
    Image.new("RGB", (90, 70), (200, 120, 90)).save(folder / "00001.png")
    capsys.readouterr()
    assert predict(folder, out, "--workers", "1") == 2
    said = f"{partial_file(out)} is of another model, of other images or of another version of dermrw: starting again"
    assert said in capsys.readouterr().out
    assert predict(folder, tmp_path / "whole.csv", "--workers", "1") == 2
    assert contents(out) == contents(tmp_path / "whole.csv")


def test_rows_of_an_older_version_are_not_taken(
    predict: Callable[..., int], tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of_images(tmp_path / "images", 3), tmp_path / "out.csv"
    older = '{"format": "dermrw predict, unfinished, 1", "digest": "0"}\n["00000", [1], null, [], null, [], [], ""]\n'
    partial_file(out).write_text(older)
    assert predict(folder, out, "--workers", "1") == 2  # an unreadable image
    assert "of another version of dermrw: starting again" in capsys.readouterr().out
    assert out.read_text().count("\n") == 3 and not partial_file(out).exists()


def test_a_foreign_file_and_a_run_in_progress_are_respected(
    predict: Callable[..., int], model: Path, tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = folder_of_images(tmp_path / "images", 40), tmp_path / "out.csv"
    partial_file(out).write_text("precious")
    assert predict(folder, out) == 2
    assert "was not written by dermrw: move it" in capsys.readouterr().err
    assert partial_file(out).read_text() == "precious"
    partial_file(out).unlink()
    images = find_images([folder]).images
    with RowFile(partial_file(out), settings_digest(Classifier(model), images, False), list(images)):
        assert predict(folder, out) == 2
        assert "another run writes" in capsys.readouterr().err
    assert predict(folder, out, "--workers", "0") == 2
    assert "--workers must be at least 1, not 0" in capsys.readouterr().err


def test_rows_without_hashes_are_not_continued_by_score(model: Path, tmp_path: Path) -> None:
    """`predict` and `score` can write to one file, and only `score` needs hashes."""
    images = find_images([folder_of_images(tmp_path / "images", 2)]).images
    classifier = Classifier(model)
    assert settings_digest(classifier, images, True) != settings_digest(classifier, images, False)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = [
        ImageRow("a", (0.1, 0.2, 1 / 3), Verdict(None, ("mel", "nv"), True, ("mel",), 100 / 3), ("a note",)),
        ImageRow("b \u2603\n", (), Verdict(None, (), None), error="bad\udce9.jpg is damaged"),
        ImageRow("c", (1.0, 0.0, 5e-324), Verdict("it is too dark", (), None)),
        ImageRow("h", (0.5,), Verdict(None, (), False), hashes=(2**64 - 1, 7)),
        *(ImageRow(f"d{i}", (float(i),), Verdict(None, (), False)) for i in range(BATCH)),
    ]
    names = [row.image_id for row in rows]
    with RowFile(tmp_path / "x", "digest", names) as file:
        file.extend(rows[:2])
        file.extend(rows[2:])
        assert len(file) == len(rows) and list(file) == rows == list(file)
    with RowFile(tmp_path / "x", "digest", [*names, "more"]) as file:
        assert len(file) == BATCH and list(file) == rows[:BATCH]
        file.extend(rows[BATCH:])
        file.finish()
    assert list(tmp_path.iterdir()) == []


# the pause leaves time for the signal, however fast the machine is
SLOWLY = """
import time
from dermrw.__main__ import main
from dermrw.inference.partial_rows import RowFile

def extend(*arguments, write=RowFile.extend):
    write(*arguments)
    time.sleep(0.2)

RowFile.extend = extend
main()
"""


def started(
    model: Path, out: Path, folder: Path, *options: str, program: Sequence[str] = ("-m", "dermrw")
) -> subprocess.Popen[str]:
    line = [sys.executable, *program, "predict", str(model), str(folder), "--csv", str(out), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Ctrl-C has its effect, even if the tests were started in the background of a shell, which ignores it
    ready = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(line, text=True, start_new_session=True, preexec_fn=ready, **pipes)  # type: ignore[call-overload]


def children(pid: int) -> list[int]:
    """The processes that do the work; the first child is multiprocessing's own."""
    pids = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in pids if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition: Callable[[], bool], seconds: float = 1200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_killed_runs_continue_and_leave_no_process_behind(model: Path, tmp_path: Path) -> None:
    """Killed three times, interrupted once, and one worker killed: the same bytes as in one go."""
    folder, out = folder_of_images(tmp_path / "images", 1500), tmp_path / "out.csv"
    whole = started(model, tmp_path / "whole.csv", folder, "--workers", "1")
    whole.communicate()
    assert whole.returncode == 2

    def done() -> int:
        return max(0, partial_file(out).read_bytes().count(b"\n") - 1) if partial_file(out).exists() else 0

    before = 0
    for how in ("kill", "interrupt", "kill", "kill a worker", "kill"):
        run = started(model, out, folder, "--workers", "2", program=("-c", SLOWLY))
        wait_for(lambda before=before: done() >= before + BATCH)  # type: ignore[misc]
        processes = children(run.pid)
        assert len(processes) == 2 and not out.exists()
        if how == "kill":
            run.kill()
        elif how == "interrupt":
            os.killpg(run.pid, signal.SIGINT)
        else:
            os.kill(processes[0], signal.SIGKILL)
        error = run.communicate(timeout=1200)[1]
        assert "Traceback" not in error
        if how == "interrupt":
            assert run.returncode == 130 and "the same command continues" in error
        elif how == "kill a worker":
            assert run.returncode == 2 and "a worker process was killed" in error
        wait_for(lambda pids=processes: not any(Path(f"/proc/{pid}").exists() for pid in pids))  # type: ignore[misc]
        before = done() - done() % BATCH
    last = started(model, out, folder, "--workers", "2")
    output, error = last.communicate(timeout=1200)
    assert last.returncode == 2 and f"Continuing after {before:,} of 1,500 images" in output and "00040.jpg" in error
    assert contents(out) == contents(tmp_path / "whole.csv")
    assert not partial_file(out).exists()


PEAK = """
import resource
import numpy as np
from dermrw.__main__ import main
from dermrw.inference.classifier import Classifier
if {stub}:  # the network is not what is measured
    run = Classifier.run
    def stub(self, pixels, *outputs):
        return [v.repeat(len(pixels), 0) for v in run(self, pixels[:1, :32, :32], *outputs)]
    Classifier._require_size, Classifier.run = lambda self: None, stub
try:
    main()
except SystemExit:
    pass
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes are Linux's unit")
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_does_not_grow_with_the_images(model: Path, tmp_path: Path, processes: int) -> None:
    folder = folder_of_images(tmp_path / "images", 1000)
    used = SHIPPED if processes == 1 else model  # inputs of 208 px, in this process; or of 32 px
    peaks = []
    for pattern in ("000*.png", "00*.png"):  # about 100 and 1000 images
        images = [str(path) for path in sorted(folder.glob(pattern))]
        line = [str(used), *images, "--csv", str(tmp_path / "x.csv"), "--workers", str(processes)]
        code = PEAK.format(stub=processes == 1)
        ended = subprocess.run(
            [sys.executable, "-c", code, "predict", *line], capture_output=True, text=True, check=True
        )
        assert len(pd.read_csv(tmp_path / "x.csv")) == len(images)
        peaks.append(int(ended.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 25, peaks  # megabytes; 900 inputs of 208 px are 111


def test_a_classifier_is_pickled_by_path(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes())
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(Classifier("m.onnx", "cpu", threads=1))
    assert len(data) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(copy(image), Classifier(path, "cpu", threads=1)(image))
    assert copy.origin.threads == 1 and copy.path == path
    path.write_bytes(SHIPPED.read_bytes())
    with pytest.raises(UserError, match=r"m\.onnx has changed"):
        pickle.loads(data)


def test_a_table_of_paths_gives_the_rows_of_predict(predict: Callable[..., int], model: Path, tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images", 70)
    assert predict(folder, tmp_path / "out.csv") == 2
    images = find_images([folder]).images
    table = {"image": np.array(list(images)), "path": np.array([str(path) for path in images.values()])}
    classifier = Classifier(model, "cpu", threads=1)
    answer = pd.DataFrame(classifier({**table, "site": np.arange(70)}))
    assert answer["site"].tolist() == list(range(70))
    assert answer[answer["error"] != ""]["image"].tolist() == ["00040.jpg"]
    assert answer[answer["error"] != ""][list(classifier.info.columns)].isna().all(axis=None)
    same_rows(answer, tmp_path / "out.csv", classifier)
    assert classifier({"path": []})["image"].shape == (0,)
    assert classifier({"path": ["nowhere/a.b.png"]})["image"].tolist() == ["a.b"]


def same_rows(answer: pd.DataFrame, out: Path, classifier: Classifier, tolerance: float = 0.0) -> None:
    readable = answer[answer["error"].fillna("") == ""].reset_index(drop=True)
    expected = pd.read_csv(out, dtype=str)  # pandas before 4 does not read all digits
    decisions = pd.read_csv(decisions_file(out), dtype=str, keep_default_na=False)
    columns = list(classifier.info.columns)
    assert readable["image"].tolist() == expected["image"].tolist()
    np.testing.assert_allclose(readable[columns], expected[columns].astype(float), rtol=0, atol=tolerance)
    for column in ("refused", "set", "triage", "not_ruled_out"):
        assert readable[column].astype(object).fillna("").tolist() == decisions[column].tolist()
    assert readable["malignancy_score"].dtype == np.float64
    scores = decisions["malignancy_score"].replace("", "nan").astype(float)
    np.testing.assert_allclose(readable["malignancy_score"], scores, rtol=0, atol=100 * tolerance)


@pytest.mark.slow
def test_ray_data_gives_the_rows_of_predict(predict: Callable[..., int], model: Path, tmp_path: Path) -> None:
    """The example of the documentation, on two local workers."""
    pytest.importorskip("ray.data")
    folder = folder_of_images(tmp_path / "images", 100)
    assert predict(folder, tmp_path / "out.csv") == 2
    example = Path(__file__).parents[2] / "docs/ray_predict.py"
    assert len(example.read_text().splitlines()) <= 30
    line = [sys.executable, str(example), str(model), str(folder), str(tmp_path / "rows"), "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    ended = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    parts = [pd.read_csv(path, dtype={"image": str}) for path in (tmp_path / "rows").glob("*.csv")]
    order = {name: i for i, name in enumerate(find_images([folder]).images)}
    rows = pd.concat(parts).sort_values("image", key=lambda names: names.map(order))
    assert len(rows) == 100
    same_rows(rows, tmp_path / "out.csv", Classifier(model, "cpu"), tolerance=1e-6)


def test_the_default_number_of_processes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(model, "cpu")
    monkeypatch.setattr(workers, "usable_cpus", lambda: 5)
    assert workers.choose_workers(classifier, 100_000, None) == 5
    assert workers.choose_workers(classifier, 100_000, 3) == 3
    assert workers.choose_workers(classifier, workers.FEW - 1, 3) == 1
    assert workers.choose_workers(classifier, 1000, 100) == 32  # batches
    monkeypatch.setattr(classifier, "device", "CUDA")
    assert workers.choose_workers(classifier, 100_000, None) == 1
    assert workers.choose_workers(classifier, 100_000, 2) == 2
    monkeypatch.undo()
    assert 1 <= workers.usable_cpus() <= (os.cpu_count() or 1)
