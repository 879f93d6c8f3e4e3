"""Links the packages that a wheel with given extras requires from this environment into a folder, without a download.

`python link_requirements.py WHEEL EXTRA,EXTRA FOLDER`: the folder then holds what pip would install, and no other
package, so a dependency that the wheel does not declare is missing there.
"""

import importlib.metadata
import sys
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# the development environment has the GPU build of the same package
SAME = {"onnxruntime": "onnxruntime-gpu"}


def required(lines: Iterable[str], extras: Iterable[str]) -> list[Requirement]:
    """Returns the requirements among `Requires-Dist` lines that hold on this machine with these extras."""
    chosen = ["", *extras]
    requirements = [Requirement(line) for line in lines]
    return [r for r in requirements if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in chosen)]


def closure(lines: list[str], extras: Iterable[str], name: str = "dermrw") -> set[str]:
    """Returns the distributions that a distribution requires, directly or not.

    Args:
        lines: its own `Requires-Dist` lines.
        extras: its extras.
        name: its name; requirements of itself add extras.
    """
    found: set[str] = set()
    open_ends: list[tuple[str, tuple[str, ...]]] = [(name, tuple(extras))]
    done: set[tuple[str, tuple[str, ...]]] = set()
    while open_ends:
        end = open_ends.pop()
        if end in done:
            continue
        done.add(end)
        own = lines if end[0] == name else importlib.metadata.requires(SAME.get(end[0], end[0])) or []
        for requirement in required(own, end[1]):
            key = canonicalize_name(requirement.name)
            found.add(key)
            open_ends.append((key, tuple(sorted(requirement.extras))))
    return found - {name}


def wheel_requirements(wheel: Path) -> list[str]:
    """Returns the `Requires-Dist` lines of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []


def link(names: Iterable[str], folder: Path) -> None:
    """Links the top-level entries of installed distributions into a folder."""
    for name in names:
        distribution = importlib.metadata.distribution(SAME.get(name, name))
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            place = folder / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))))


if __name__ == "__main__":
    link(closure(wheel_requirements(Path(sys.argv[1])), filter(None, sys.argv[2].split(","))), Path(sys.argv[3]))
