"""Reads and replaces the `metadata_props` of an .onnx file, without onnx and without touching the graph. No torch.

An .onnx file is a protobuf message `ModelProto`. Its field 14 repeats a message of a key (field 1) and a value (field
2). All other fields are copied byte for byte. Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator, Mapping

METADATA_PROPS = 14  # onnx.proto: ModelProto.metadata_props
KEY, VALUE = 1, 2  # onnx.proto: StringStringEntryProto
LENGTH_DELIMITED = 2  # wire type of messages, strings and bytes
FIXED = {1: 8, 5: 4}  # bytes of the wire types of fixed width


def read_props(content: bytes) -> dict[str, str]:
    """Returns the `metadata_props` of an .onnx file.

    Raises:
        ValueError: the content is not a protobuf message.
    """
    props = {}
    for number, start, _, end in _fields(content):
        if number == METADATA_PROPS:
            entry = content[start:end]
            texts = {inner: entry[first:last].decode() for inner, first, _, last in _fields(entry)}
            props[texts.get(KEY, "")] = texts.get(VALUE, "")
    return props


def with_props(content: bytes, props: Mapping[str, str]) -> bytes:
    """Returns an .onnx file with these `metadata_props` in place of its own; everything else is the same.

    Raises:
        ValueError: the content is not a protobuf message.
    """
    view = memoryview(content)
    kept = [view[begin:end] for number, _, begin, end in _fields(content) if number != METADATA_PROPS]
    added = [
        _delimited(METADATA_PROPS, _delimited(KEY, key.encode()) + _delimited(VALUE, value.encode()))
        for key, value in props.items()
    ]
    return b"".join([*kept, *added])


def _fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields the number, start of the value, start of the tag, and end of each field."""
    position = 0
    while position < len(content):
        begin = position
        tag, position = _varint(content, position)
        kind, start = tag & 7, position
        if kind == 0:
            _, position = _varint(content, position)
        elif kind == LENGTH_DELIMITED:
            length, start = _varint(content, position)
            position = start + length
        elif kind in FIXED:
            position += FIXED[kind]
        else:
            raise ValueError(f"unknown wire type {kind}")
        if position > len(content):
            raise ValueError("truncated")
        yield tag >> 3, start, begin, position


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Returns the number of variable length at a position, and the position after it."""
    value = shift = 0
    while True:
        if position >= len(content) or shift > 63:
            raise ValueError("truncated")
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _delimited(number: int, value: bytes) -> bytes:
    """Returns a field of bytes."""
    return _encoded(number << 3 | LENGTH_DELIMITED) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    """Returns a number in variable length."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)
