"""What a HEIC or AVIF file states of its primary picture in its properties (ISO/IEC 23008-12, 6.5). No torch."""

from collections.abc import Iterator

MOST_BOXES = 10_000  # of one container; a grid of tiles needs a few hundred


def nclx(content: bytes) -> tuple[int, int] | None:
    """Colour primaries and transfer characteristics (ITU-T H.273) of the primary picture.

    Returns:
        None if the file states none, or if its boxes cannot be read.
    """
    for kind, body in _properties(content):
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
            return int.from_bytes(body[4:6], "big"), int.from_bytes(body[6:8], "big")
    return None


def turned(content: bytes) -> bool:
    """Whether the primary picture has a property that turns or mirrors it, as decoders do."""
    return any(kind in (b"irot", b"imir") for kind, _ in _properties(content))


def _properties(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each property of the primary picture."""
    meta = next((body for kind, body in _boxes(content) if kind == b"meta"), b"")[4:]
    primary, properties, associations = -1, b"", b""
    for kind, body in _boxes(meta):
        if kind == b"pitm":
            primary = int.from_bytes(body[4:6] if body[:1] == b"\0" else body[4:8], "big")
        elif kind == b"iprp":
            for inner, inner_body in _boxes(body):
                properties = inner_body if inner == b"ipco" else properties
                associations = inner_body if inner == b"ipma" else associations
    indices = _properties_of(primary, associations)
    for index, box in enumerate(_boxes(properties), 1):
        if index in indices:
            yield box


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and body of each box (ISO/IEC 14496-12, 4.2); ends at the first one that does not fit."""
    at = 0
    for _ in range(MOST_BOXES):
        size, kind, head = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        elif size == 0:  # to the end
            size = len(content) - at
        if size < head or at + size > len(content):
            return
        yield kind, content[at + head : at + size]
        at += size


def _properties_of(item: int, associations: bytes) -> set[int]:
    """The numbers, from 1, of the properties of an item, from an `ipma` box."""
    wide_id, wide_index = associations[:1] not in (b"", b"\0"), bool(associations[3:4] and associations[3] & 1)
    id_size, step = 4 if wide_id else 2, 2 if wide_index else 1
    at = 8
    for _ in range(min(int.from_bytes(associations[4:8], "big"), MOST_BOXES)):
        number = int.from_bytes(associations[at : at + id_size], "big")
        at += id_size
        count = associations[at] if at < len(associations) else 0
        at += 1
        if number == item:
            listed = (associations[at + n * step : at + (n + 1) * step] for n in range(count))
            return {int.from_bytes(index, "big") & (0x7FFF if wide_index else 0x7F) for index in listed}
        at += count * step
    return set()
