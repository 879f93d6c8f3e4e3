"""The labelled cases that a picture is most like, by the model's own embedding. No torch in here.

`python -m export.index` writes them, index.npz beside the model file, on a machine that has the images: it holds no
picture, only where each lies there.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dermrw.errors import UserError
from dermrw.files import open_regular

CASES = 5


class Case(NamedTuple):
    """A labelled image."""

    image_id: str
    code: str  # its diagnosis
    path: Path
    likeness: float  # cosine of the embeddings, less their mean: -1 to 1


def index_of(model: Path) -> Path:
    """Where a model file's index lies."""
    return model.with_name("index.npz")


def _unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors `[..., D]` brought to length 1."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(length, 1e-12), dtype=np.float32)


class Index:
    """Every case of a folder of labelled images, as one model sees it."""

    def __init__(
        self,
        digest: str,
        ids: npt.NDArray[np.str_],
        lesions: npt.NDArray[np.str_],
        codes: npt.NDArray[np.str_],
        paths: npt.NDArray[np.str_],
        embeddings: npt.NDArray[np.floating],
    ) -> None:
        """Embeddings `[N, D]`; all else `[N]`. `digest` is the model file's."""
        self.digest, self.ids, self.lesions, self.codes, self.paths = digest, ids, lesions, codes, paths
        self.embeddings = np.asarray(embeddings, dtype=np.float32)
        self.centre = self.embeddings.mean(0)  # what all have in common tells nothing
        self._directions = _unit(self.embeddings - self.centre)

    def nearest(
        self, embedding: npt.NDArray[np.floating], count: int = CASES, besides: str | None = None
    ) -> list[Case]:
        """The cases most like a picture of this embedding `[D]`, the likest first, one image of each lesion.

        `besides` is a lesion that is not to be shown: the picture's own, where it is one of these cases.
        """
        likeness = self._directions @ _unit(np.asarray(embedding, dtype=np.float32) - self.centre)
        found: list[Case] = []
        seen = {besides}
        for row in np.argsort(-likeness, kind="stable"):
            if len(found) == count:
                break
            if self.lesions[row] not in seen:
                seen.add(self.lesions[row])
                case = str(self.ids[row]), str(self.codes[row]), Path(str(self.paths[row])), float(likeness[row])
                found.append(Case(*case))
        return found

    def agreement(self, ids: list[str]) -> tuple[float, float]:
        """Of the nearest cases of other lesions, the share that has the image's diagnosis: mean over images, classes.

        Raises:
            ValueError: none of the images is in here.
        """
        shares: dict[str, list[float]] = {}
        for row in np.flatnonzero(np.isin(self.ids, ids)):
            cases = self.nearest(self.embeddings[row], besides=str(self.lesions[row]))
            code = str(self.codes[row])
            shares.setdefault(code, []).append(float(np.mean([case.code == code for case in cases])))
        if not shares:
            raise ValueError("none of these images is a case of the index")
        each = [np.array(s) for s in shares.values()]
        return float(np.concatenate(each).mean()), float(np.mean([s.mean() for s in each]))

    def save(self) -> bytes:
        """As a NumPy archive; of what differs from the mean, half precision is enough to rank by."""
        buffer = io.BytesIO()
        np.savez(
            buffer, digest=np.array(self.digest), ids=self.ids, lesions=self.lesions, codes=self.codes,
            paths=self.paths, centre=self.centre, differences=(self.embeddings - self.centre).astype(np.float16),
        )  # fmt: skip
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path, digest: str) -> Self:
        """An index that `save` gave for the model file of this digest.

        Raises:
            UserError: it can't be read, or is another model's.
        """
        try:
            with open_regular(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
                ids, lesions, codes, paths = (arrays[key] for key in ("ids", "lesions", "codes", "paths"))
                embeddings, own = arrays["centre"] + arrays["differences"], str(arrays["digest"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the index {path} can't be read ({reason}): `make index` writes it anew") from None
        if own != digest:
            raise UserError(f"the index {path} is of another model file: `make index` writes it anew")
        return cls(own, ids, lesions, codes, paths, embeddings)
