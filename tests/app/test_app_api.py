"""The API: the results of `dermrw predict` to the last digit, and its limits."""

import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import command, draw
from PIL import Image
from tools.serving import SECONDS, Form, Server, basic

from app.middleware import MAX_OTHER_BYTES, MAX_REQUEST_BYTES
from dermrw.inference.classifier import Classifier

pytestmark = pytest.mark.slow


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    "prevalence", ["equal", "training", "mel=0.1,nv=0.7,bcc=0.05,akiec=0.05,bkl=0.05,df=0.03,vasc=0.02"]
)
def test_it_answers_as_predict_does_to_the_last_digit(
    server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prevalence: str
) -> None:
    one, two, dark = (draw(tmp_path / f"{name}.png", seed) for name, seed in (("one", 4), ("two", 9), ("dark", 1)))
    Image.open(dark).point(lambda v: v // 30).save(dark)
    (tmp_path / "lesions.csv").write_text("image,lesion_id\none,L\ntwo,L\ndark,L\n")
    for together in (False, True):
        more = ["--lesions", str(tmp_path / "lesions.csv")] if together else []
        command(
            monkeypatch, "predict", str(model), str(one), str(two), str(dark), "--csv", str(tmp_path / "o.csv"),
            "--prevalence", prevalence, *more,
        )  # fmt: skip
        expected, decided = rows(tmp_path / "o.csv"), rows(tmp_path / "o_decisions.csv")
        assert decided["dark"]["refused"]
        for pictures in [(one, two, dark)] if together else [(one,), (two,)]:
            answer = server.classify(*pictures, prevalence=prevalence)
            for picture in pictures[:2]:
                row, decision = expected[picture.stem], decided[picture.stem]
                assert {k.upper(): repr(v) for k, v in answer["probabilities"].items()} == {
                    k: v for k, v in row.items() if k != "image"
                }
                assert (answer["triage"], " ".join(answer["set"])) == (decision["triage"], decision["set"])
            for picture, own in zip(pictures, answer["pictures"], strict=True):
                assert own["name"] == picture.name and (own["refused"] or "") == decided[picture.stem]["refused"]
    alone = server.classify(dark)
    assert alone["refused"] == decided["dark"]["refused"] and alone["probabilities"] is None and alone["set"] == []
    assert alone["model"]["sha256"] == Classifier(model).digest and "Not a medical device" in alone["note"]


def test_mistakes_are_a_sentence(server: Server, lesion: Path) -> None:
    image = ("image", (lesion.name, lesion.read_bytes()))
    mistakes: list[tuple[Form, int, str]] = [
        ([("image", ("x.jpg", b"Dear colleague"))], 422, "x.jpg is not an image"),
        ([("image", ("x.jpg", lesion.read_bytes()[:2000]))], 422, "x.jpg is damaged"),
        ([("image", "words")], 422, "image must be a file"),
        ([], 422, "send one or more fields named image"),
        ([image, ("url", "https://example.com")], 422, "nothing else"),
        ([image, ("prevalence", "rare")], 422, "prevalence takes equal, training"),
        ([image] * 11, 400, "Too many files"),
        ([("image", ("x.jpg", bytes(30_000_001)))], 413, "larger than 30 MB"),
    ]
    for form, status, message in mistakes:
        got, answer = server.form("/classify", form)
        assert (got, message in json.loads(answer)["error"]) == (status, True), answer
        assert "--prevalence" not in answer
    assert server.ask("/classify", {"image": "/etc/passwd"})[0] == 422
    assert server.ask("/classify")[0] in (404, 405)
    assert server.send("POST", "/classify", content_length=str(MAX_REQUEST_BYTES + 1))[0] == 413
    assert server.send("POST", "/classify", content_length="10", transfer_encoding="chunked")[0] == 411
    assert server.send("POST", "/gradio_api/queue/join", content_length=str(MAX_OTHER_BYTES + 1))[0] == 413
    assert server.send("POST", "/classify", transfer_encoding="chunked")[0] == 411
    assert server.files() == [] and server.ask("/health")[0] == 200


def test_it_ends_in_good_order_and_leaves_nothing(model: Path, tmp_path: Path, lesion: Path) -> None:
    running = Server(model, tmp_path)
    running.classify(lesion)
    running.upload("mrs-smith.jpg", lesion.read_bytes())  # by a page that is closed before it requests a result
    assert running.files() == ["mrs-smith.jpg"]
    output = running.end()
    assert running.process.returncode == 0 and list(running.temporary.iterdir()) == []
    assert "Traceback" not in output and "smith" not in output.lower() and lesion.name not in output


def test_running_requests_are_finished(model: Path, tmp_path: Path, lesion: Path) -> None:
    program = f"import app.__main__ as demo; demo.GRACE_SECONDS = {SECONDS}; demo.main()"  # a slow machine needs longer
    running = Server(model, tmp_path, program=("-c", program))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(running.classify, lesion) for _ in range(8)]
        while not any(answer.done() for answer in answers):
            time.sleep(0.01)
        running.end()
        assert len({json.dumps(answer.result()["probabilities"]) for answer in answers}) == 1


def test_a_password(model: Path, lesion: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes("s3cret:wörd\r\nmore\r\n".encode("utf-8-sig"))  # as Windows writes it
    running = Server(model, tmp_path, "--password-file", str(secret))
    for path in ("/", "/config", "/gradio_api/info"):
        assert running.ask(path)[0] == 401
    image = [("image", (lesion.name, lesion.read_bytes()))]
    assert running.form("/classify", image)[0] == 401
    began = time.monotonic()
    assert running.ask("/", authorization=basic("x", "s3cret:wörf"))[0] == 401
    assert time.monotonic() - began >= 1  # guessing is slow
    for wrong in (basic("x", "s3cret"), basic("x", ""), "Basic ?", "Bearer s3cret:wörd".encode().decode("latin-1")):
        assert running.form("/classify", image, authorization=wrong)[0] == 401
    good = basic("anyone", "s3cret:wörd")
    assert running.form("/classify", image, authorization=good)[0] == 200
    assert running.ask("/", authorization=good)[0] == 200 and running.ask("/health")[0] == 200
    assert "s3cret" not in running.end()
