"""`python -m app [MODEL]`: serves a model file as a web page on this machine."""

import argparse
import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dermrw.errors import UserError, plain_endings
from dermrw.files import open_regular, path_argument
from dermrw.inference.shipped import shipped_model

from .loading import LoadingPage

if TYPE_CHECKING:  # imported when they are needed, so that the command prints its first line at once
    from dermrw.inference.case_index import Index
    from dermrw.inference.classifier import Classifier

HOST, PORT = "127.0.0.1", 7860
GRACE_SECONDS = 10  # that running requests have to finish when the server stops


def find_model(named: Path | None) -> Path:
    """Returns the path of the named model file, or of a run folder's; None gives the one shipped with dermrw."""
    if named is None:
        return shipped_model()
    return named / "model.onnx" if named.is_dir() else named


def find_index(classifier: "Classifier") -> "Index | None":
    """Loads the labelled cases next to the model file; None if there are none, or none that fit (prints why)."""
    from dermrw.inference.case_index import Index, index_path

    path = index_path(classifier.path)
    if not path.exists():
        return None
    try:
        return Index.load(path, classifier.digest)
    except UserError as error:
        print(f"No nearest cases are shown: {error}")
        return None


def read_password(path: Path | None) -> str:
    """Returns the first line of the file; empty without a file.

    Raises:
        UserError: the file can't be read, or its first line is shorter than 8 characters.
    """
    if path is None:
        return ""
    try:
        with open_regular(path) as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                print(f"Other users of this machine can read {path}: run chmod 600 {path}")
            password = file.read(10_000).decode("utf-8-sig").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise UserError(
            f"the password file {path} is not text in UTF-8: write the password in its first line"
        ) from None
    except OSError as error:
        raise UserError(f"the password file {path} can't be read ({error.strerror}): name another file") from None
    if len(password) < 8:
        raise UserError(f"the first line of {path} must be a password of at least 8 characters")
    return password


def bind_socket(host: str, port: int | None) -> socket.socket:
    """Returns a socket bound to the port, or without a port to the first free one from 7860.

    Raises:
        UserError: the port can't be used, or the address is not one of this machine.
    """
    not_ours = UserError(f"{host!r} is not an address of this machine: choose one with --host")
    if not host:  # the system would listen on every address
        raise not_ours
    for candidate in [port] if port is not None else range(PORT, PORT + 100):
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, candidate))
        except (OSError, OverflowError, TypeError) as error:
            bound.close()
            # an invalid or unknown name, or the address of another machine
            if isinstance(error, TypeError | socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
                raise not_ours from None
            reason = getattr(error, "strerror", None) or error
            if port is not None:
                raise UserError(f"port {port} of {host} can't be used ({reason}): choose another with --port") from None
            continue
        return bound
    raise UserError(f"no port from {PORT} to {PORT + 99} of {host} can be used: choose one with --port")


def main(command_line: Sequence[str] | None = None, program: str = "python -m app") -> None:
    """Runs the command. A user's mistake ends it with one sentence and status 2.

    Args:
        command_line: the arguments; default: those of the process.
        program: the name of the command, for messages.
    """
    parser = argparse.ArgumentParser(program, description="Serve a model as a web page on this machine.")
    parser.add_argument(
        "model",
        nargs="?",
        type=path_argument,
        help="model file (.onnx) or run folder (default: the model shipped with dermrw)",
    )
    parser.add_argument(
        "--host", default=HOST, help="address to listen on (default: %(default)s, for this machine only)"
    )
    parser.add_argument("--port", type=int, help=f"port to listen on (default: the first free one from {PORT})")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="further host name that browsers may use, such as a proxy's; repeat it for several names. Always allowed: "
        "localhost and --host; with --host 0.0.0.0 also every IP address",
    )  # fmt: skip
    parser.add_argument(
        "--password-file", metavar="FILE", type=path_argument, help="require the password in the first line of FILE"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    with plain_endings(program.removeprefix("python -m "), "demo"):
        bound = bind_socket(arguments.host, arguments.port)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        address = f"http://{host}:{bound.getsockname()[1]}"
        print(f"Starting the demo at {address}", flush=True)
        loading = LoadingPage(bound)
        from dermrw.inference.classifier import QUANTIZED, Classifier

        from .middleware import own_names
        from .uploads import clear_stale

        is_own = own_names(arguments.host, arguments.allow_host)
        password = read_password(arguments.password_file)
        classifier = Classifier(find_model(arguments.model), arguments.device)
        import uvicorn

        from .engine import Engine
        from .page import UPLOADS, build_app

        clear_stale()
        index = find_index(classifier)
        info = classifier.info
        refit = f", thresholds refitted on {info.refit.source}" if info.refit else ""
        print(
            f"Model {info.name} of {info.created}{refit}, SHA-256 {classifier.digest[:12]}, on the {classifier.device}"
        )
        if info.warning:
            print(info.warning)
        if classifier.quantized:
            print(QUANTIZED)
        if index is not None:
            print(f"Showing the nearest of {len(index.ids):,} labelled cases")
        if not password and arguments.host not in ("127.0.0.1", "::1", "localhost"):
            print("Anyone who can reach this address can use the demo: --password-file FILE requires a password")
        config = uvicorn.Config(
            build_app(Engine(classifier, index), is_own, password), log_level="error", access_log=False, ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )  # fmt: skip
        if os.name == "posix":  # each connection needs a file descriptor, and the usual limit is low
            import resource

            hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        # uvicorn finishes the running requests and then raises the signal again: exit normally then
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        loading.stop()
        print(f"Serving {address} (press Ctrl-C to stop)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            print("Stopped.")
        finally:
            UPLOADS.cleanup()


if __name__ == "__main__":
    main()
