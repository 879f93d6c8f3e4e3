"""`python -m export.ship RUN`: makes a run's exported model the one included in dermrw.

Writes app/model.onnx, MODEL_CARD.md and the card's figures in docs/model. `make demo` serves this model by default.
"""

import argparse
import json
from pathlib import Path

from dermrw.errors import UserError, plain_endings
from dermrw.files import path_argument, write_atomic
from dermrw.inference.classifier import Classifier

MOST = 25_000_000  # bytes, as every clone contains the file
PICTURES = ("reliability.png", "doubt.png")


def box(run: Path, root: Path = Path(), notes: str = "") -> None:
    """Copies the run's model, card and figures to their places below `root`; `notes` follow the card's table.

    Raises:
        UserError: the run has not been exported and stress-tested, or its model is too large.
    """
    model = run / "model.onnx"
    digest = Classifier(model).digest
    if model.stat().st_size > MOST:
        raise UserError(
            f"{model} has {model.stat().st_size / 1e6:.1f} MB, more than {MOST / 1e6:.0f} MB: export it again "
            "with --weights fp16, or choose a smaller model.backbone"
        )
    try:
        challenged = json.loads((run / "doubt.json").read_text(encoding="utf-8"))["model"]["sha256"]
        card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
        pictures = {name: (run / name).read_bytes() for name in PICTURES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} has no stress test ({error}): run `make challenge RUN={run}` first") from None
    if challenged != digest or digest not in card:
        raise UserError(
            f"{run / 'MODEL_CARD.md'} describes another model file: write it again with `make challenge RUN={run}`"
        )
    for name, content in pictures.items():
        card = card.replace(f"]({name})", f"](docs/model/{name})")
        (root / "docs/model").mkdir(parents=True, exist_ok=True)
        write_atomic(root / "docs/model" / name, content)
    if notes:
        card = card.replace("\n## How good it is\n", f"\n{notes}\n\n## How good it is\n", 1)
    write_atomic(root / "app/model.onnx", model.read_bytes())
    write_atomic(root / "MODEL_CARD.md", card.replace("| file | `model.onnx`", "| file | `app/model.onnx`").encode())
    print(f"{root / 'app/model.onnx'} ({model.stat().st_size / 1e6:.1f} MB), {root / 'MODEL_CARD.md'}")


def main() -> None:
    """Copies the files. A user error prints one sentence and exits with status 2."""
    parser = argparse.ArgumentParser("export.ship", description="Replace the model shipped with dermrw by a run's.")
    parser.add_argument("run", type=path_argument, help="the run's folder, after make export and make challenge")
    parser.add_argument("--notes", default="", help="text for the model card about training data and weights")
    arguments = parser.parse_args()
    with plain_endings("export.ship"):
        box(arguments.run, notes=arguments.notes)


if __name__ == "__main__":
    main()
