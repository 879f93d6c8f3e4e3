"""`python -m app [MODEL]`: serves a model file to a browser on this machine."""

import argparse
import errno
import os
import signal
import socket
import sys
from pathlib import Path

from dermrw.diagnoses import DX
from dermrw.errors import UserError, plain_endings
from dermrw.files import open_regular
from dermrw.inference.case_index import Index, index_path
from dermrw.inference.classifier import Classifier

from .middleware import own_names
from .uploads import clear_stale

HOST, PORT = "127.0.0.1", 7860


IN_THE_BOX = Path(__file__).with_name("model.onnx")


def find_model(named: Path | None) -> Path:
    """The model file, or that of the run's folder, that was named; else the one that comes with dermrw."""
    if named is None:
        return IN_THE_BOX
    return named / "model.onnx" if named.is_dir() else named


def find_index(classifier: Classifier) -> Index | None:
    """The labelled cases beside the model file; None where there are none, or, which is said, none that fit."""
    path = index_path(classifier.path)
    if not path.exists():
        return None
    try:
        return Index.load(path, classifier.digest)
    except UserError as error:
        print(f"No nearest cases are shown, since {error}")
        return None


def read_password(path: Path | None) -> str:
    """The first line of the file; nothing where none is named.

    Raises:
        UserError: it can't be read, or its first line is shorter than 8 characters.
    """
    if path is None:
        return ""
    try:
        with open_regular(path) as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                print(f"Others on this machine may read {path}: chmod 600 {path}")
            password = file.read(10_000).decode("utf-8-sig").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the password file {path} can't be read: {error}") from None
    if len(password) < 8:
        raise UserError(f"the first line of {path} must be a password of at least 8 characters")
    return password


def free_port(host: str, port: int | None) -> socket.socket:
    """A socket bound to the port; where none was asked for, to the first free one from 7860 on.

    Raises:
        UserError: the port is taken, or not ours to take; or the address is not this machine's.
    """
    foreign = UserError(f"{host!r} is not an address of this machine: name one with --host")
    if not host:  # the system would take it for every address
        raise foreign
    for candidate in [port] if port is not None else range(PORT, PORT + 100):
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, candidate))
        except (OSError, OverflowError, TypeError) as error:
            bound.close()
            # a name that is none, or isn't known; an address of another machine
            if isinstance(error, TypeError | socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
                raise foreign from None
            reason = getattr(error, "strerror", None) or error
            if port is not None:
                raise UserError(f"port {port} of {host} can't be used ({reason}): name another with --port") from None
            continue
        return bound
    raise UserError(f"no port from {PORT} to {PORT + 99} of {host} can be used: name one with --port")


def main() -> None:
    """A user's mistake is one sentence and status 2."""
    parser = argparse.ArgumentParser("app", description="Serve a model as a web page on this machine.")
    parser.add_argument("model", nargs="?", type=Path, help="an .onnx file or a run (default: dermrw's own model)")
    parser.add_argument("--host", default=HOST, help="address to serve on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, help=f"default: the first free one from {PORT} on")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="a further name that browsers may call it by, such as a proxy's; may be given several times (default: "
        "localhost and --host alone; with --host 0.0.0.0 any IP address, too)",
    )  # fmt: skip
    parser.add_argument("--password-file", metavar="FILE", type=Path, help="ask for the password in its first line")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    arguments = parser.parse_args()
    with plain_endings("app"):
        classifier = Classifier(find_model(arguments.model), arguments.device)
        if classifier.info.codes != DX:
            raise UserError(
                f"{classifier.path} knows {', '.join(classifier.info.codes)}, and this page seven diagnoses"
            )
        password = read_password(arguments.password_file)
        is_own = own_names(arguments.host, arguments.allow_host)
        bound = free_port(arguments.host, arguments.port)
        import uvicorn

        from .engine import Engine
        from .page import UPLOADS, build_app

        clear_stale()
        index = find_index(classifier)
        info, port = classifier.info, bound.getsockname()[1]
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"Model {info.name} of {info.created}, SHA-256 {classifier.digest[:12]}, on the {classifier.device}")
        if info.warning:
            print(info.warning)
        if index is not None:
            print(f"With the nearest of {len(index.ids):,} labelled cases")
        if not password and arguments.host not in ("127.0.0.1", "::1", "localhost"):
            print("Whoever reaches this address can use it: --password-file FILE asks for a password")
        print(f"Serving http://{host}:{port} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            build_app(Engine(classifier, index), is_own, password), log_level="error", access_log=False, ws="none",
            timeout_graceful_shutdown=10,
        )  # fmt: skip
        if os.name == "posix":  # each connection takes a file's place, and what is usual is few
            import resource

            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        # uvicorn finishes what is in hand and then raises the signal again: let that end the program in good order
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            print("Ended.")
        finally:
            UPLOADS.cleanup()


if __name__ == "__main__":
    main()
