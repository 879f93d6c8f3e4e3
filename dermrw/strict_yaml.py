"""A strict YAML reader for configs: it rejects ambiguous input, and a small file cannot expand to a large value."""

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dermrw.errors import UserError
from dermrw.files import open_regular

short = reprlib.Repr()  # shortens values that an error message quotes
short.maxstring = 100


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with stricter rules.

    Plain PyYAML reads `3e-4` as a string, because YAML 1.1 requires `3.0e-4`. It silently takes the last of two equal
    keys, fails on the 30th of February, reads 010 as 8 and 1:30 as 90, and expands nested aliases without limit.
    """

    # a config has no dates, so a value that looks like a date is text
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Rejects aliases, which no config needs."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not supported: write out its value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Rejects duplicate keys and keys that are not text."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"the key {short.repr(key.value)} must be text"
            elif key.value in seen:
                problem = f"the key {key.value} occurs twice: keep one"
            else:
                seen.add(key.value)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _float(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    try:
        return float(text)
    except ValueError:
        return text


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """An integer in decimal digits, also with zeros in front; any other notation of YAML 1.1 is text."""
    text = loader.construct_scalar(node)
    return int(text) if re.fullmatch(r"[-+]?\d+(_\d+)*", text) else text


def _fraction(loader: _Loader, node: yaml.ScalarNode) -> Any:
    text = loader.construct_scalar(node)
    return text if ":" in text else loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
_Loader.add_constructor("tag:yaml.org,2002:float", _fraction)
_Loader.add_implicit_resolver("!number", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
_Loader.add_constructor("!number", _float)


def parse_value(text: str) -> Any:
    """Returns the value of an override, read as YAML (numbers, true/false, null), or otherwise the text itself."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a number with more digits than Python accepts
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a config file, empty for an empty file.

    Raises:
        UserError: the file is absent, can't be read as YAML, or does not hold a mapping.
    """
    values = read_yaml_value(path, "config file", "name one of configs/*.yaml")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} must contain `key: value` lines")
    return values


def read_yaml_value(path: Path, kind: str, fix: str) -> Any:
    """Returns the value in a YAML file, None for an empty file.

    Args:
        path: the file.
        kind: the kind of the file, for messages.
        fix: advice if it is absent.

    Raises:
        UserError: the file is absent or can't be read as YAML.
    """
    try:
        with open_regular(path) as file:
            return yaml.load(file.read().decode(), _Loader)
    except FileNotFoundError:
        raise UserError(f"there is no {kind} {path}: {fix}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the {kind} {path} can't be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise UserError(f"the {kind} {path} can't be read as YAML: {reason}") from None
