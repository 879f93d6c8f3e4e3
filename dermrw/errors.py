"""The error that a user can mend, and how a program ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user's or a fault of their data: one sentence that names the culprit and the mend."""


@contextmanager
def plain_endings(program: str) -> Iterator[None]:
    """Ends `program` without a traceback: a user's mistake is a sentence and status 2, Ctrl-C status 130."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"\n{program}: stopped{''.join(f'; {said}' for said in stop.args)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # the reader of a pipe (`| head`) left; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # what no file's own code foresaw: a full disk, a folder without permission, a drive that went away
        place = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {place}{error.strerror or error}: free some space, or mend the place", file=sys.stderr)
        sys.exit(2)
