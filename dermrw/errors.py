"""The error class for mistakes that the user can fix, and the handling of errors at the end of a program."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error in the user's input or data. Its message is one sentence that names the cause and the fix."""


def remedy(error: OSError) -> str:
    """Returns advice for the user if a file can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    return "choose a shorter one" if error.errno == errno.ENAMETOOLONG else "correct its permissions, or name another"


def first_of(names: Sequence[str]) -> str:
    """Returns the first name and the number of further names, such as `a.jpg and 3 more`."""
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def printable(text: str) -> str:
    """Returns the text with control characters escaped.

    File names and the contents of damaged files may come from any source, and a terminal would execute control codes
    in them.
    """
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


def install_command(extra: str) -> str:
    """Returns the command that installs the packages of an extra: pip's, or `make install` in a checkout."""
    in_checkout = (Path(__file__).parents[1] / "pyproject.toml").is_file()
    return "make install" if in_checkout else f"pip install 'dermrw[{extra}]'"


@contextmanager
def plain_endings(program: str, extra: str = "train") -> Iterator[None]:
    """Context manager that ends `program` without a traceback.

    A `UserError` prints its message and exits with status 2, and so does a missing package, with the command that
    installs `extra`, which the program needs. Ctrl-C exits with status 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\n{program}: stopped{''.join(f'; {hint}' for hint in stop.args)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) has closed it, so nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("dermrw", "app", "export"):
            raise
        print(f"{program}: the Python package {error.name} is missing: run `{install_command(extra)}`", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # an error that no other code handles: a full disk, a folder without permission, a removed drive
        place = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {printable(place)}{error.strerror or error}: {remedy(error)}", file=sys.stderr)
        sys.exit(2)
