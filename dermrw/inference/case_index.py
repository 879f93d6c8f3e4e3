"""The labelled cases most similar to an image, by the model's embedding. No torch in here.

`python -m export.index` writes the index, `index.npz` next to the model file, on a machine that has the images. The
index holds no image, only each image's path.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dermrw.errors import UserError
from dermrw.files import open_regular
from dermrw.inference.neighbours import nearest_rows, unit_vectors

CASES = 5


class Case(NamedTuple):
    """A labelled image."""

    image_id: str
    code: str  # its diagnosis
    path: Path
    similarity: float  # cosine of the centred embeddings, -1 to 1


def index_path(model: Path) -> Path:
    """The path of a model file's index."""
    return model.with_name("index.npz")


class Index:
    """The embeddings of a folder of labelled images by one model."""

    def __init__(
        self,
        digest: str,
        ids: npt.NDArray[np.str_],
        lesions: npt.NDArray[np.str_],
        codes: npt.NDArray[np.str_],
        paths: npt.NDArray[np.str_],
        embeddings: npt.NDArray[np.floating],
        examples: Sequence[int] = (),
    ) -> None:
        """Takes `embeddings` `[N, D]`, the other arrays `[N]`, and the model file's SHA-256 as `digest`.

        `examples` are rows of images that the model was neither trained, selected nor calibrated on, to try it with.
        """
        self.digest, self.ids, self.lesions, self.codes, self.paths = digest, ids, lesions, codes, paths
        self.examples = [int(row) for row in examples]
        self.embeddings = np.asarray(embeddings, dtype=np.float32)
        self.centre = self.embeddings.mean(0)  # centring increases the differences between cosines
        self._directions = unit_vectors(self.embeddings - self.centre)

    def nearest(
        self, embedding: npt.NDArray[np.floating], count: int = CASES, exclude_lesion: str | None = None
    ) -> list[Case]:
        """The cases most similar to an image of this embedding `[D]`, the most similar first, one image per lesion.

        `exclude_lesion` is left out: the lesion of the image itself, if the index holds it.
        """
        similarity = self._directions @ unit_vectors(np.asarray(embedding, dtype=np.float32) - self.centre)
        rows = nearest_rows(similarity, self.lesions, count, exclude_lesion=exclude_lesion, one_per_lesion=True)
        return [
            Case(str(self.ids[row]), str(self.codes[row]), Path(str(self.paths[row])), float(similarity[row]))
            for row in rows
        ]

    def agreement(self, ids: list[str]) -> tuple[float, float]:
        """Share of nearest cases with the image's diagnosis, other lesions only: mean over images, mean over classes.

        Raises:
            ValueError: the index holds none of these images.
        """
        shares: dict[str, list[float]] = {}
        for row in np.flatnonzero(np.isin(self.ids, ids)):
            cases = self.nearest(self.embeddings[row], exclude_lesion=str(self.lesions[row]))
            code = str(self.codes[row])
            shares.setdefault(code, []).append(float(np.mean([case.code == code for case in cases])))
        if not shares:
            raise ValueError("none of these images is a case of the index")
        by_class = [np.array(class_shares) for class_shares in shares.values()]
        return float(np.concatenate(by_class).mean()), float(
            np.mean([class_shares.mean() for class_shares in by_class])
        )

    def save(self) -> bytes:
        """The index as a NumPy archive; half precision is enough to rank centred embeddings."""
        buffer = io.BytesIO()
        np.savez(
            buffer, digest=np.array(self.digest), ids=self.ids, lesions=self.lesions, codes=self.codes,
            paths=self.paths, examples=np.array(self.examples, dtype=np.int64), centre=self.centre,
            differences=(self.embeddings - self.centre).astype(np.float16),
        )  # fmt: skip
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path, digest: str) -> Self:
        """The index that `save` wrote for the model file with this SHA-256.

        Raises:
            UserError: the file cannot be read, or belongs to another model.
        """
        try:
            with open_regular(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
                ids, lesions, codes, paths = (arrays[key] for key in ("ids", "lesions", "codes", "paths"))
                embeddings, own_digest = arrays["centre"] + arrays["differences"], str(arrays["digest"])
                examples = arrays["examples"] if "examples" in arrays else np.empty(0, np.int64)  # of older versions
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the index {path} can't be read ({reason}): write it again with `make index`") from None
        if own_digest != digest:
            raise UserError(f"the index {path} is of another model file: write it again with `make index`")
        return cls(own_digest, ids, lesions, codes, paths, embeddings, examples[examples < len(ids)].tolist())
