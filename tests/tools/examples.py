"""`make examples`: draws the demo's examples anew, and the README's picture of the demo, with the shipped model.

A model may refuse a drawing, as it should. An example is to show an answer, so it is the first drawing of its diagnosis
that the shipped model does not refuse and of which it finds the diagnosis most probable.
"""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tools.serving import Server, Visit

from dermrw.datasets.sample_drawing import draw_lesion
from dermrw.diagnoses import DX
from dermrw.inference.classifier import Classifier
from dermrw.inference.shipped import shipped_model

FOLDER, PICTURE = Path("app/examples"), Path("docs/demo.png")
MOST_TRIES = 500
SHOWN = "drawn-mel.jpg"  # in the README's picture


def draw_example(dx: str, classifier: Classifier) -> tuple[bytes, int]:
    """Returns the JPEG file of an example of this diagnosis, and its seed.

    Raises:
        RuntimeError: the model answers none of the drawings correctly.
    """
    for seed in range(MOST_TRIES):
        rng = np.random.default_rng
        stream = io.BytesIO()
        Image.fromarray(draw_lesion(dx, rng(seed), rng(seed + 1), 360, 480)).save(stream, "JPEG", quality=85)
        stream.seek(0)
        explained = classifier.explain(Image.open(stream))
        if explained.verdict.refused is None and DX[int(np.argmax(explained.probabilities))] == dx:
            return stream.getvalue(), seed
    raise RuntimeError(f"the model answers none of {MOST_TRIES} drawings of {dx} correctly")


def take_picture(path: Path) -> None:
    """Writes a screenshot of the demo's answer for an example."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(shipped_model(), Path(folder))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        visit = Visit(browser, server.url, viewport={"width": 1280, "height": 800}, color_scheme="light")
        visit.page.click(f"[data-example='{SHOWN}']")
        visit.page.wait_for_selector("#result .answer")
        visit.page.wait_for_timeout(1000)
        visit.page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1280, "height": 740})
        browser.close()
        server.end()


def main() -> None:
    """Writes the examples and the picture."""
    classifier = Classifier(shipped_model())
    for dx in DX:
        content, seed = draw_example(dx, classifier)
        (FOLDER / f"drawn-{dx}.jpg").write_bytes(content)
        print(f"{dx}: drawing {seed}", flush=True)
    take_picture(PICTURE)


if __name__ == "__main__":
    main()
