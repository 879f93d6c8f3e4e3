"""No environment variable that is left in the shell matters to the demo."""

import importlib.util
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.serving import Server

from app.engine import Engine
from app.environment import KEPT, REMOVED, SET, matches, prepare
from app.page import UPLOADS, carried
from app.render import lesion_result
from dermrw.inference.classifier import Classifier
from dermrw.inference.lesion import combine_explanations

# what Gradio imports, as far as it reads variables
LIBRARIES = (
    "gradio", "gradio_client", "hf_gradio", "huggingface_hub", "httpx", "httpcore", "safehttpx", "uvicorn", "starlette",
    "fastapi", "fsspec", "tqdm", "typer", "rich", "click", "pydantic", "groovy", "anyio", "python_multipart",
    "opentelemetry",
)  # fmt: skip
READ = re.compile(
    r"""(?:environ(?:\.get|\.setdefault|\.pop)?\s*[\[(]\s*|getenv\(\s*)["'](\w+)["']"""
    r"""|["'](\w+)["']\s+(?:not\s+)?in\s+(?:os\.)?environ\b|^_?OTEL_\w+ = ["'](\w+)["']""",
    re.MULTILINE,
)
WSGI = {"REMOTE_ADDR", "SERVER_NAME", "SERVER_PORT", "CONTENT_LENGTH"}  # keys of a WSGI request, not variables


def names_read() -> Iterator[str]:
    """Yields the names of the variables in the installed libraries' source."""
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in Path(folder).rglob("*.py"):
                for found in READ.finditer(path.read_text(encoding="utf-8", errors="replace")):
                    yield found[1] or found[2] or found[3]


NAMES = sorted({*names_read()} - WSGI)
PROXIES = [
    written
    for name in ("all_proxy", "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "socks_proxy")
    for written in (name, name.upper(), name.title())
]
# not read from these libraries' own source: by Python, OpenSSL, or the name is composed
FURTHER = [
    "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OPENSSL_CONF", "OPENSSL_MODULES", "FSSPEC_HTTP",
    "TQDM_MININTERVAL", "UVICORN_PORT", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "PANDAS_COPY_ON_WRITE", "PANDAS_FUTURE_INFER_STRING", "NUMPY_MADVISE_HUGEPAGE", "NPY_PROMOTION_STATE",
    "MPLBACKEND", "MPLCONFIGDIR", "MATPLOTLIBRC", "GRADIO_SOMETHING_NEW", "gradio_root_path",
]  # fmt: skip
ALL = [*NAMES, *PROXIES, *FURTHER]


def test_the_source_was_found() -> None:
    assert {"GRADIO_ROOT_PATH", "GRADIO_SERVER_PORT", "SSL_CERT_FILE", "HF_HOME", "WEB_CONCURRENCY"} <= {*NAMES}


@pytest.mark.parametrize("name", ALL)
def test_each_variable_is_set_removed_or_kept_on_purpose(name: str) -> None:
    environment = {name: "harmful", "OMP_NUM_THREADS": "2"}
    prepare(environment)
    kept = {name: "harmful"} if matches(name, KEPT) else {}
    assert kept or name in SET or matches(name, REMOVED), f"{name} is not in app/environment.py"
    assert environment == SET | kept | {"OMP_NUM_THREADS": "2"}


def test_kept_and_removed_do_not_overlap() -> None:
    assert not [name for name in [*ALL, *SET] if matches(name, KEPT) and (name in SET or matches(name, REMOVED))]


def test_the_uploads_stay_in_their_own_folder() -> None:
    assert os.environ["GRADIO_TEMP_DIR"] == str(UPLOADS.folder)
    assert stat.S_IMODE(UPLOADS.folder.stat().st_mode) == 0o700


HARMFUL = {
    **{name: "harmful" for name in ALL if not matches(name, KEPT)},
    **dict.fromkeys(PROXIES, "socks5h://proxy.example:1080"),
    "http_proxy": "proxy.example:port", "ALL_PROXY": "socks://", "no_proxy": "::1/128,fe80::/10,[::1],*.example",
    "NO_PROXY": "::1/128", "SSL_CERT_FILE": "absent.pem", "SSL_CERT_DIR": "absent", "SSLKEYLOGFILE": "absent/key.log",
    "OPENSSL_CONF": "absent.cnf", "GRADIO_ROOT_PATH": "/elsewhere", "GRADIO_TEMP_DIR": "/proc/absent",
    "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_SHARE": "True", "GRADIO_SSR_MODE": "True",
    "GRADIO_MCP_SERVER": "True", "GRADIO_VIBE_MODE": "1", "GRADIO_WATCH_DIRS": ".", "GRADIO_HOT_RELOAD": "true",
    "GRADIO_PROFILING": "1", "SYSTEM": "spaces", "SPACE_ID": "some/one", "SPACES_ZERO_GPU": "true",
    "FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1:4318", "EAGER_IMPORT": "1",
    "HF_HOME": "/proc/absent", "XDG_CACHE_HOME": "/proc/absent", "HOME": "/proc/absent", "MPLCONFIGDIR": "/proc/absent",
    "MPLBACKEND": "harmful", "COLUMNS": "-1", "LINES": "many", "CI": "1",
}  # fmt: skip


@pytest.mark.slow
def test_it_answers_rightly_with_all_of_them_set(model: Path, tmp_path: Path, lesion: Path) -> None:
    engine = Engine(Classifier(model, "cpu"))
    with lesion.open("rb") as file:
        expected = combine_explanations([engine.classifier.explain(file)], engine.info)
    server = Server(model, tmp_path, "--device", "cpu", **HARMFUL)
    assert server.ask("/")[0] == 200
    config = json.loads(server.ask("/config")[1])
    assert config["root"] == server.url
    assert not any(config[key] for key in ("space_id", "dev_mode", "vibe_mode", "analytics_enabled", "mcp_server"))
    assert server.classify(lesion) == json.loads(json.dumps(engine.answer([lesion.name], expected, "equal", None)))
    show = next(call for call in config["dependencies"] if call["api_name"] == "show_lesion")
    upload = {"path": server.upload(lesion.name, lesion.read_bytes()), "meta": {"_type": "gradio.FileData"}}
    call = {"data": [[upload], ""], "fn_index": show["id"], "session_hash": "s"}
    assert server.ask("/gradio_api/queue/join", call)[0] == 200
    events = server.ask("/gradio_api/queue/data?session_hash=s")[1]
    completed = next(line for line in events.splitlines() if '"msg":"process_completed"' in line)
    html = json.loads(completed.removeprefix("data: "))["output"]["data"][0]
    assert without_time(html) == without_time(carried(lesion_result(expected, [lesion.name], engine, "equal", None)))
    assert server.files() == []  # no upload is left
    printed = server.end()
    assert "Traceback" not in printed and "harmful" not in printed, printed


def without_time(html: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d\+\d\d:\d\d", "", html)
