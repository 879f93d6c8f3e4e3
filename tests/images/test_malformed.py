"""Malformed files end in a sentence or in a picture: no other exception, no hang."""

import io
import time
from pathlib import Path

import pytest
from malformed import malformed, whole_files

from dermrw.errors import UserError
from dermrw.images.preprocess import read_image

NUMBER = 400


def test_the_files_before_they_are_damaged(tmp_path: Path) -> None:
    for name, content in whole_files(tmp_path).items():
        if name in ("apng", "pages"):
            with pytest.raises(UserError, match=r"an animation of 2|a TIFF of 2 pages"):
                read_image(io.BytesIO(content))
        else:
            assert read_image(io.BytesIO(content)).mode == "RGB", name


@pytest.mark.filterwarnings("ignore")
def test_malformed_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read = 0
    for name, content in malformed(tmp_path, NUMBER):
        file = io.BytesIO(content)
        file.name = "the file"
        start = time.monotonic()
        try:
            read += read_image(file).mode == "RGB"
        except UserError as error:
            sentence = str(error)
            assert "the file" in sentence and "\n" not in sentence and len(sentence) < 400, name
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - start < 20, name
    assert 0.05 * NUMBER < read < 0.8 * NUMBER  # some damage does not matter, and most does
    assert "Traceback" not in capfd.readouterr().err
