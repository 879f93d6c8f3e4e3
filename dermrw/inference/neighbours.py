"""Nearest neighbours by the cosine of embeddings. No torch in here."""

import numpy as np
import numpy.typing as npt


def unit_vectors(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors `[..., D]` scaled to length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)


def nearest_rows(
    similarity: npt.NDArray[np.floating],
    lesions: npt.NDArray[np.str_],
    count: int,
    *,
    exclude_lesion: str | None = None,
    one_per_lesion: bool = False,
) -> npt.NDArray[np.int64]:
    """The rows of the `count` most similar images, the most similar first; ties in the order of the rows.

    Args:
        similarity: of each image to the query `[N]`.
        lesions: of each image `[N]`.
        count: at most so many rows are returned.
        exclude_lesion: a lesion whose images are left out, usually the query's own.
        one_per_lesion: keep only the most similar image of each lesion.
    """
    order = np.argsort(-similarity, kind="stable")
    if exclude_lesion is not None:
        order = order[lesions[order] != exclude_lesion]
    if one_per_lesion:
        _, first = np.unique(lesions[order], return_index=True)
        order = order[np.sort(first)]
    return order[:count]
