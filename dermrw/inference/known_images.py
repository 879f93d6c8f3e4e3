"""The list of images that a model was fitted on, in its file: to leave them out where the model is scored. No torch.

The file holds no image and no name. It holds 40 bits of the SHA-256 of each id, and two perceptual hashes of 64 bits of
each image: ImageHash's `phash` and `dhash` of the network's input. They also find resized and recompressed copies under
other names. `phash` alone would take 2 % of new dermoscopic images for copies, so both must agree. Rotated or mirrored
copies are found by their ids only.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermrw.errors import UserError
from dermrw.published import archive_id

KEY = "known_images"  # of the .onnx' `metadata_props`
DIGEST_BYTES = 5  # of an id's SHA-256: 10,000 listed ids match another id with a probability of 1 in 10^8
MOST_BITS = (4, 6)  # of each hash that may differ between copies of one image; docs/score.md has the measurement
SAME_BITS = (3, 4)  # the same where a false match would stop a training: none among the 10,015 images of HAM10000
MOST_IMAGES = 2_000_000
PAIRS = 1 << 23  # images compared at a time, 64 MB

Pixels = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
ImageHash = tuple[int, int]  # phash and dhash, 64 bits each


def image_hash(pixels: Pixels) -> ImageHash:
    """Returns the perceptual hashes of a network's input uint8 `[size, size, 3]`."""
    import imagehash  # imported here, because the demo and `predict` use this module without it

    image = Image.fromarray(pixels)
    first, second = (np.asarray(compute(image).hash, dtype=bool) for compute in (imagehash.phash, imagehash.dhash))
    return _number(first), _number(second)


def _number(bits: npt.NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def is_distinctive(image_id: str) -> bool:
    """Whether an id is likely to name the same image in other data too: it has a number of at least five digits.

    A name such as `1` also belongs to other people's images. These are recognised by their hashes alone.
    """
    return re.search(r"\d{5,}", image_id.replace("\\", "/").rpartition("/")[2]) is not None


def id_digest(image_id: str) -> bytes:
    """Returns the digest of an image's id; upper and lower case are the same."""
    return hashlib.sha256(image_id.strip().casefold().encode("utf-8", "surrogateescape")).digest()[:DIGEST_BYTES]


def id_digests(image_ids: Iterable[str]) -> frozenset[bytes]:
    """Returns the digests of ids; those of the ISIC archive also without folder, suffix and `_downsampled`.

    A path of Windows, as tables have it, is known by its last part, too.
    """
    names = list(image_ids)
    names += [own for name in names if (own := archive_id(name))]
    return frozenset(map(id_digest, [*names, *(name.rpartition("\\")[2] for name in names if "\\" in name)]))


def have_copy(hashes: Hashes, others: Hashes, most_bits: tuple[int, int] = MOST_BITS) -> npt.NDArray[np.bool_]:
    """Returns whether each image `[N]` with these hashes `[N, 2]` is a copy of one of `others` `[M, 2]`."""
    result = np.zeros(len(hashes), dtype=bool)
    count = max(1, PAIRS // max(1, len(others)))
    for start in range(0, len(hashes), count):
        rows = slice(start, start + count)
        near = [np.bitwise_count(hashes[rows, None, k] ^ others[None, :, k]) <= most_bits[k] for k in range(2)]
        result[rows] = (near[0] & near[1]).any(axis=1)
    return result


def have_two_labels(hashes: Hashes, labels: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Returns whether each image `[N]` looks, by equal hashes `[N, 2]`, like images with two labels; empty is none.

    Pictures of one colour do not count: their hashes are equal.
    """
    looks = [tuple(row) for row in hashes.tolist()]
    labels_of: dict[tuple[int, ...], set[str]] = {}
    for look, label in zip(looks, labels, strict=True):
        if label and look[1]:
            labels_of.setdefault(look, set()).add(label)
    return np.array([len(labels_of.get(look, ())) > 1 for look in looks], dtype=bool)


class KnownImages(NamedTuple):
    """The images that a model was trained, selected and calibrated on."""

    ids: frozenset[bytes]  # digests
    hashes: Hashes  # [M, 2]; empty if the images could not be read at export

    @classmethod
    def of(cls, ids: Iterable[str], hashes: Iterable[ImageHash]) -> Self:
        """Returns the list of images with these ids and hashes."""
        return cls(id_digests(ids), _array(sorted(set(hashes))))

    def added(self, ids: Iterable[str], hashes: Hashes) -> "KnownImages":
        """Returns the list with further images."""
        return self.united(KnownImages(id_digests(ids), hashes))

    def united(self, other: "KnownImages") -> "KnownImages":
        """Returns the images of both lists."""
        return KnownImages(self.ids | other.ids, np.unique(np.concatenate([self.hashes, other.hashes]), axis=0))

    def match(self, ids: Sequence[str], hashes: Sequence[ImageHash] | Hashes) -> npt.NDArray[np.bool_]:
        """Returns whether each image `[N]` is listed, by its id or as a copy of a listed image."""
        return self.match_ids(ids) | have_copy(_array(hashes), self.hashes)

    def match_ids(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Returns whether each image `[N]` is listed by its id, which may be a path, or have the suffix of a copy."""
        return np.array([not self.ids.isdisjoint(id_digests([name])) for name in ids], dtype=bool)

    def to_prop(self) -> str:
        """Returns the entry `KEY` of `metadata_props`."""
        parts = {"ids": b"".join(sorted(self.ids)), "hashes": self.hashes.astype(">u8").tobytes()}
        values = {name: base64.b85encode(zlib.compress(data, 9)).decode() for name, data in parts.items()}
        return json.dumps({"format": 1, **values})

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str) -> Self | None:
        """Returns the list in the entries of `metadata_props`; None if there is none.

        Raises:
            UserError: the list is damaged.
        """
        if KEY not in props:
            return None
        try:
            values = json.loads(props[KEY])
            if values["format"] != 1:
                raise ValueError("of another version")
            ids, hashes = _unpacked(values["ids"], DIGEST_BYTES), _unpacked(values["hashes"], 16)
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error, RecursionError):
            raise UserError(f"{source}: its list of training images is damaged: export the model again") from None
        digests = frozenset(ids[i : i + DIGEST_BYTES] for i in range(0, len(ids), DIGEST_BYTES))
        return cls(digests, np.frombuffer(hashes, dtype=">u8").astype(np.uint64).reshape(-1, 2))


def _array(hashes: Sequence[ImageHash] | Hashes) -> Hashes:
    return np.array(hashes, dtype=np.uint64).reshape(-1, 2)


def _unpacked(text: str, width: int) -> bytes:
    """The bytes of `to_prop`; at most `MOST_IMAGES` entries, since a small text could unpack to gigabytes."""
    unpack = zlib.decompressobj()
    data = unpack.decompress(base64.b85decode(text), MOST_IMAGES * width)
    if not unpack.eof or len(data) % width:
        raise ValueError("truncated")
    return data
