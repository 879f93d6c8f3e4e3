"""A gallery of the training images with the lowest weights, for checking their labels.

Each is shown with its label, the network's prediction and the most similar training images of other lesions, by the
network's embedding. A low weight does not prove a wrong label: the picture may be poor, or the lesion unusual for its
class.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn

from dermrw.config import Config
from dermrw.datasets.dataset import ImageSet, Splits
from dermrw.datasets.pixels import ImageDataset
from dermrw.diagnoses import BENIGN_CLASSES
from dermrw.errors import UserError
from dermrw.evaluation.predict import BATCH, load_best, softmax
from dermrw.files import require_writable, write_atomic
from dermrw.images.thumbnail import thumbnail
from dermrw.inference.neighbours import nearest_rows
from dermrw.models import RecordedInputs, last_linear
from dermrw.training.device import Placement, choose_device
from dermrw.training.example_weights import Detection, by_weight, detection, read_weights, wrong_share_of_class
from dermrw.training.logits import predict_logits
from dermrw.training.run_data import run_splits
from dermrw.training.run_folder import open_run, unit_of

NEIGHBOURS = 4


class Audit(NamedTuple):
    """The audited images, lowest weight first."""

    table: pd.DataFrame  # weights.csv's columns, and relative, predicted, probability
    neighbours: list[np.ndarray]  # rows of the training set, at most NEIGHBOURS for each image, nearest first
    wrong_share: float | None  # of wrong labels in the training set; None unless they were added on purpose
    detection: list[Detection]  # of the weights and of simpler rankings; empty unless labels are wrong on purpose
    tied: int  # training images with the same weight as the table's last one


def embed(model: nn.Module, images: ImageSet, config: Config, choice: Placement) -> tuple[np.ndarray, np.ndarray]:
    """Logits `[N, C]` and embeddings `[N, D]` of unit length (inputs of the last linear layer) of a set."""
    pixels = ImageDataset(images, config.data, progress="the training split", once=True)
    with RecordedInputs(last_linear(model)) as entered:
        logits = predict_logits(model, pixels, choice, BATCH)
    embedding = torch.cat([x.flatten(1).float().cpu() for x in entered])
    return logits, nn.functional.normalize(embedding).numpy()


def find(run: Path, count: int) -> tuple[Audit, Splits, Config]:
    """The `count` training images of the lowest weight, with predictions and neighbours."""
    config = open_run(run)
    splits = run_splits(run, config)
    train, codes = splits.train, splits.classes.codes
    lowest = by_weight(read_weights(run))
    row_of = {image: row for row, image in enumerate(train.table["image_id"])}
    if not set(lowest["image_id"]) <= set(row_of):
        raise UserError(
            f"{run / 'weights.csv'} lists images that are not in the training split of split.csv: restore both, or "
            "name another run"
        )
    model, _ = load_best(run, config, splits.classes)
    choice = Placement(choose_device("auto"), "fp32", config.train.channels_last is True)
    logits, embedding = embed(choice.place(model), train, config, choice)
    probabilities = softmax(logits)
    drawn = lowest["image_id"].map(row_of).to_numpy()  # rows of the training set
    wrong = (lowest["dx"] != lowest["label"]).to_numpy()
    share = float(wrong.mean()) if wrong.any() else None
    found = []
    if share is not None and not wrong.all():
        given = train.labels[drawn]
        scores = {
            "the weights within their class": -lowest["relative"].to_numpy(),
            "the weights": -lowest["weight"].to_numpy(),
            "the trained network's probability of the label": -of_labels(probabilities[drawn], given, splits),
            "the class of the label alone": wrong_share_of_class(wrong, given),
        }
        found = [detection(name, wrong, score, given, count) for name, score in scores.items()]
    table = lowest.iloc[:count]
    rows = drawn[:count]
    p = probabilities[rows]
    table = table.assign(predicted=[codes[k] for k in p.argmax(1)], probability=p.max(1))
    similarity = embedding[rows] @ embedding.T  # [count, N]
    lesions = train.table["lesion_id"].to_numpy(str)
    near = [
        nearest_rows(image_similarity, lesions, NEIGHBOURS, exclude_lesion=lesions[row])
        for image_similarity, row in zip(similarity, rows, strict=True)
    ]
    tied = int((lowest["relative"] == table["relative"].iloc[-1]).sum())
    return Audit(table, near, share, found, tied), splits, config


def of_labels(probabilities: np.ndarray, labels: np.ndarray, splits: Splits) -> np.ndarray:
    """Returns the probability of each label `[N]`; of a label that is a set of classes, their sum.

    Args:
        probabilities: of the classes `[N, C]`.
        labels: `[N]`, from C on a set of classes.
        splits: of the run.
    """
    classes = np.arange(probabilities.shape[1])
    of_label = np.eye(len(classes))
    if splits.sets:
        of_label = np.vstack([of_label, np.isin(classes, BENIGN_CLASSES)])
    result: np.ndarray = (probabilities * of_label[labels]).sum(1)
    return result


def audit(run: Path, count: int = 100) -> Path:
    """Writes RUN/audit.html and audit.csv; returns the path of the page."""
    if count < 1:
        raise UserError(f"--count must be at least 1, not {count}")
    for name in ("audit.html", "audit.csv"):
        require_writable(run / name)
    found, splits, config = find(run, count)
    train, ids = splits.train, splits.train.table["image_id"].tolist()
    row_of = {image: row for row, image in enumerate(ids)}

    def picture(row: int) -> dict[str, Any]:
        source, tiny = thumbnail(train.sources[row])
        return {"id": ids[row], "label": splits.label_names[train.labels[row]], "picture": source, "tiny": tiny}

    cards = [
        {
            **picture(row_of[item.image_id]),
            "dx": item.dx,
            "relative": item.relative,
            "predicted": item.predicted,
            "probability": item.probability,
            "neighbours": [picture(row) for row in near],
        }
        for item, near in zip(found.table.itertuples(), found.neighbours, strict=True)
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    page = environment.get_template("audit.html.jinja").render(
        run=run.name, cards=cards, total=len(ids), found=found, counts=found.table["label"].value_counts().to_dict(),
        objective=config.objective.title, sample=config.data.name == "sample", neighbours=NEIGHBOURS,
        unit=unit_of(run, config),
    )  # fmt: skip
    near = [" ".join(ids[row] for row in rows) for rows in found.neighbours]
    table = found.table.assign(neighbours=near)
    write_atomic(run / "audit.csv", table.to_csv(index=False, lineterminator="\n").encode())
    write_atomic(run / "audit.html", page.encode())
    print(f"{len(cards)} of {len(ids):,} training images: those with the lowest weight within their class")
    if found.tied == len(ids):
        print("All training images have the same weight, so their order means nothing")
    elif found.tied > 1:
        print(f"{found.tied:,} images have the same weight as the last one shown; ties are ordered by image_id")
    if found.wrong_share is not None:
        print(f"{100 * found.wrong_share:.1f} % of the training labels are wrong on purpose. How a ranking finds them:")
    for row in found.detection:
        print(
            f"  by {row.name}: {100 * row.precision:.0f} % of the first {len(cards)}, AUROC {row.auroc:.2f}, within "
            f"a class {row.auroc_within_class:.2f}"
        )
    print(f"{run / 'audit.html'}, {run / 'audit.csv'}")
    return run / "audit.html"
