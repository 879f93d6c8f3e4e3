"""predictions.csv in ISIC's format: a column `image` and a column of probabilities for each class."""

from pathlib import Path

import numpy as np
import pandas as pd

from dermrw.diagnoses import Classes
from dermrw.files import predictions_csv, write_atomic


def write_predictions(path: Path, image_ids: pd.Series, classes: Classes, probabilities: np.ndarray) -> None:
    """Writes probabilities `[N, C]`, clipped to [0, 1], with all digits, since rounding makes ties."""
    write_atomic(path, predictions_csv(image_ids, classes.columns, np.clip(probabilities, 0.0, 1.0).tolist()))


def read_predictions(path: Path, image_ids: pd.Series, classes: Classes) -> np.ndarray:
    """Probabilities `[N, C]` of the images, in the order of `image_ids`."""
    # as text first: pandas' own fast parser may miss a number by its last digit
    table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("image")
    return table.loc[image_ids.tolist(), list(classes.columns)].to_numpy(str).astype(np.float64)


def write_lesions(path: Path, images: pd.DataFrame) -> None:
    """Writes the columns image and lesion_id of a table with image_id and lesion_id."""
    lesions = images[["image_id", "lesion_id"]].rename(columns={"image_id": "image"})
    write_atomic(path, lesions.to_csv(index=False, lineterminator="\n").encode())
