"""YAML as people write it in configs: read by no guess, and never at a length that a few bytes ask for."""

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from dermrw.errors import UserError
from dermrw.files import open_regular

short = reprlib.Repr()  # of values that a sentence quotes
short.maxstring = 100


class _Loader(yaml.SafeLoader):
    """What differs from PyYAML's own.

    PyYAML alone reads `3e-4` as a string, since YAML 1.1 wants `3.0e-4`, takes the last of two equal keys without a
    word, fails on the 30th of February, and unfolds nested aliases to whatever size they say.
    """

    # a config holds no dates: what looks like one is text
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuses aliases, which no config needs."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"the alias *{event.anchor} isn't taken", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuses a key that is there twice, and one that is no text."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                problem = f"the key {short.repr(key.value)} is no text"
            elif key.value in seen:
                problem = f"the key {key.value} is there twice"
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


_Loader.add_implicit_resolver("!number", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
_Loader.add_constructor("!number", _float)


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML: numbers, true/false, null, else the text itself."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a number of more digits than Python reads
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        with open_regular(path) as file:
            values = yaml.load(file.read().decode(), _Loader)
    except FileNotFoundError:
        raise UserError(f"there is no config file {path}: name one of configs/*.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {path} can't be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise UserError(f"the config file {path} can't be read as YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} must hold `key: value` lines")
    return values
