"""`python -m export.ship RUN`: makes a run's exported model the one included in dermrw.

Writes app/model.onnx, MODEL_CARD.md and the card's figures in docs/model. `make demo` serves this model by default.
"""

import argparse
import json
from pathlib import Path

from dermrw.errors import UserError, plain_endings
from dermrw.files import write_atomic
from dermrw.inference.classifier import Classifier

MOST = 20_000_000  # bytes, as every clone contains the file
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
            f"{model} has {model.stat().st_size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}: take a smaller one"
        )
    try:
        challenged = json.loads((run / "doubt.json").read_text(encoding="utf-8"))["model"]["sha256"]
        card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
        pictures = {name: (run / name).read_bytes() for name in PICTURES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} has not been challenged ({error}): `make challenge RUN={run}` first") from None
    if challenged != digest or digest not in card:
        raise UserError(f"{run}'s card is of another model file: `make challenge RUN={run}` makes it anew")
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
    parser = argparse.ArgumentParser("export.ship", description="Make a run's model the one that comes with dermrw.")
    parser.add_argument("run", type=Path, help="the run's folder, exported and challenged")
    parser.add_argument("--notes", default="", help="what the card should say of the training data and weights")
    arguments = parser.parse_args()
    with plain_endings("export.ship"):
        box(arguments.run, notes=arguments.notes)


if __name__ == "__main__":
    main()
