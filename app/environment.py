"""The environment variables of the demo's libraries: each is set, removed or kept on purpose.

The demo contacts no other machine and takes its settings from the command line. A proxy, a certificate file or a
setting of another Gradio app that is left in the shell must not affect it. `tests/app/test_app_environment.py` fails if
an installed library reads a variable that is not listed here.
"""

import os
from collections.abc import Iterable, MutableMapping
from fnmatch import fnmatchcase

NO_NETWORK = "the demo contacts no other machine"
COMMAND_LINE = "the demo's settings are its command line's options"

# Pattern of the name, in upper case: reason. Variables with these names are removed.
REMOVED = {
    # proxies: httpx creates a client when Gradio is imported, and fails on a URL that it can't parse or use. urllib
    # accepts any capitalisation
    "*_PROXY": NO_NETWORK,
    # certificates: httpx opens the file when Gradio is imported
    "SSL_CERT_FILE": NO_NETWORK,
    "SSL_CERT_DIR": NO_NETWORK,
    "REQUESTS_CA_BUNDLE": NO_NETWORK,
    "CURL_CA_BUNDLE": NO_NETWORK,
    "SSLKEYLOGFILE": NO_NETWORK,  # Python opens this file for every TLS context
    "OPENSSL_*": NO_NETWORK,  # a broken configuration file makes every TLS context fail
    # Gradio
    "GRADIO_*": COMMAND_LINE,  # GRADIO_ROOT_PATH, for example, would make every call of the page fail with status 404
    "SYSTEM": "Gradio would behave as on Hugging Face Spaces",
    "SPACE_*": "Gradio would behave as on Hugging Face Spaces",
    "SPACES_*": "Gradio would behave as on Hugging Face Spaces",
    "OAUTH_*": "the demo has no sign-in by OAuth",
    "OPENID_PROVIDER_URL": "the demo has no sign-in by OAuth",
    "KAGGLE_KERNEL_RUN_TYPE": "Gradio would open a public tunnel",
    "OPENAI_API_KEY": NO_NETWORK,
    "DISCORD_TOKEN": NO_NETWORK,
    # the client of Hugging Face's hub, which Gradio imports
    "HF_*": NO_NETWORK,
    "HUGGINGFACE_*": NO_NETWORK,
    "HUGGING_FACE_*": NO_NETWORK,
    "TRANSFORMERS_OFFLINE": NO_NETWORK,
    "WEBHOOK_SECRET": NO_NETWORK,
    "CLAUDE_CONFIG_DIR": NO_NETWORK,
    "VERTEX_PRODUCT": NO_NETWORK,
    "ACTIONS_ID_TOKEN_*": NO_NETWORK,
    "EAGER_IMPORT": "the client would import all of its modules",
    # the server
    "WEB_CONCURRENCY": COMMAND_LINE,
    "FORWARDED_ALLOW_IPS": "the demo does not use a client's address",
    "UVICORN_*": COMMAND_LINE,
    "FASTAPI_*": COMMAND_LINE,  # FASTAPI_OTEL_AUTO_CONFIGURE would send telemetry
    "OTEL_*": NO_NETWORK,
    "_OTEL_*": NO_NETWORK,
    # other libraries, whose values can make their import fail
    "FSSPEC*": NO_NETWORK,
    "TQDM_*": "the demo shows no progress bar in the terminal",
    "TYPER_*": "the demo does not use Gradio's commands",
    "_TYPER_*": "the demo does not use Gradio's commands",
    "TERMINAL_WIDTH": "the demo does not use Gradio's commands",
    "UNICODE_VERSION": "the demo does not use Gradio's commands",
    "PANDAS_*": "the demo does not use pandas, which Gradio imports",
    "SCIPY_*": "the score is computed with the libraries' defaults",
    "SKLEARN_*": "the same",
    "JOBLIB_*": "the same",
    "LOKY_*": "the same",
    "PYDANTIC_*": "a plugin could change how requests are checked",
    "MPL*": "Gradio imports Matplotlib if it is installed, which fails on an unknown MPLBACKEND",
    "MATPLOTLIBRC": "the same",
    "NUMPY_MADVISE_HUGEPAGE": "NumPy's import fails on a value that is not a number",
    "NPY_PROMOTION_STATE": "NumPy accepts only one value",
}

# Set to these values, after the variables above were removed. `gradio_hardening` also sets GRADIO_TEMP_DIR
SET = {
    "NO_PROXY": "*",  # not the system's proxies either, which urllib looks up on Windows and macOS
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OTEL_SDK_DISABLED": "true",
    "MPLBACKEND": "agg",
    "FSSPEC_CONFIG_DIR": os.devnull,  # no folder: a damaged file in ~/.config/fsspec would make the import fail
}

# Read by the libraries, and left as they are.
KEPT = {
    "PATH": "finds programs",
    "HOME": "the user's folder, in which the demo writes nothing",
    "XDG_*": "folders of the user, in which the demo writes nothing",
    "TMPDIR": "the folder of the uploads is created below it",
    "TEMP": "the same on Windows",
    "TMP": "the same on Windows",
    "SHELL": "read by Gradio's commands only",
    "COMP_*": "read by Gradio's commands only",
    "PAGER": "read by Gradio's commands only",
    "LESS": "read by Gradio's commands only",
    "BROWSER": "read by Gradio's workflows only",
    "DISPLAY": "read by Gradio's workflows only",
    "WAYLAND_DISPLAY": "read by Gradio's workflows only",
    "SSH_*": "read by Gradio's workflows only",
    "CI": "read by Gradio's workflows only",
    "PYTEST_CURRENT_TEST": "read by Gradio's workflows only",
    "GITHUB_ACTIONS": "read by commands only",
    "TERM": "colours and width of the terminal",
    "COLORTERM": "colours and width of the terminal",
    "COLUMNS": "colours and width of the terminal",
    "LINES": "colours and width of the terminal",
    "NO_COLOR": "colours and width of the terminal",
    "FORCE_COLOR": "colours and width of the terminal",
    "PY_COLORS": "colours and width of the terminal",
    "TTY_*": "colours and width of the terminal",
    "JUPYTER_*": "colours and width of a notebook",
    "DATABRICKS_RUNTIME_VERSION": "colours and width of a notebook",
}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Returns whether the name of a variable, in any capitalisation, has one of the patterns."""
    return any(fnmatchcase(name.upper(), pattern) for pattern in patterns)


def prepare(environment: MutableMapping[str, str]) -> None:
    """Removes and sets variables. To be called before a library is imported, since they read most of them only then."""
    for name in [name for name in environment if matches(name, REMOVED)]:
        del environment[name]
    environment.update(SET)
