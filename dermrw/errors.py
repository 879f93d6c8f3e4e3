"""The error that a user can mend, and how a program ends."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user's or a fault of their data: one sentence that names the culprit and the mend."""


def remedy(error: OSError) -> str:
    """What a user can do where a file can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    return "choose a shorter one" if error.errno == errno.ENAMETOOLONG else "mend the place, or name another"


def first_of(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def printable(text: str) -> str:
    """The text without what a terminal would obey: names of files, and what damaged ones say, come from anywhere."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


@contextmanager
def plain_endings(program: str) -> Iterator[None]:
    """Ends `program` without a traceback: a user's mistake is a sentence and status 2, Ctrl-C status 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\n{program}: stopped{''.join(f'; {said}' for said in stop.args)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("dermrw", "app", "export"):
            raise
        print(f"{program}: there is no {error.name} here: `make install` sets up what has it", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # what no file's own code foresaw: a full disk, a folder without permission, a drive that went away
        place = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {printable(place)}{error.strerror or error}: {remedy(error)}", file=sys.stderr)
        sys.exit(2)
