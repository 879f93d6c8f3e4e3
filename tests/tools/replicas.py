"""`make replicas`: app/nginx.conf with TLS and two replicas, one of which is killed under load. Needs nginx.

The exit status is 1 if an answer is wrong or missing, or if an open page does not work afterwards.
"""

import argparse
import atexit
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.load import ask_many, draw_pictures
from tools.serving import ROOT, Client, Server, Visit, basic, wait_until

NAME, PORT = "demo.example.org", 18443
PASSWORD = "a password for trying"


def start_nginx(folder: Path, ports: list[int]) -> "subprocess.Popen[bytes]":
    """Starts nginx with app/nginx.conf, changed only in its ports, certificate and folders."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}",
         "-keyout", folder / "demo.key", "-out", folder / "demo.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = (ROOT / "app/nginx.conf").read_text()
    replacements = {
        "127.0.0.1:7861": f"127.0.0.1:{ports[0]}", "127.0.0.1:7862": f"127.0.0.1:{ports[1]}",
        "listen 443 ssl": f"listen 127.0.0.1:{PORT} ssl", "/etc/ssl/": f"{folder}/",
        "listen 80": f"listen 127.0.0.1:{PORT + 1}", "/var/log/nginx": str(folder),
        "/dev/shm/dermrw": f"{folder}/body",
    }  # fmt: skip
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "demo.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ include {folder}/demo.conf; }}\n"
    )
    nginx = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    atexit.register(nginx.terminate)  # also after an error
    return nginx


def answers(client: Client) -> bool:
    """Returns whether the server accepts connections and answers."""
    with contextlib.suppress(OSError):
        return client.ask("/health")[0] == 200
    return False


def main() -> None:
    """Opens pages, kills one replica under load, and then uses the pages again."""
    parser = argparse.ArgumentParser("replicas", description=__doc__)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--model", type=Path, default=Path("app/model.onnx"))
    arguments = parser.parse_args()
    if not shutil.which("nginx"):
        sys.exit("replicas: nginx is not installed: apt install nginx-light")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "password").write_text(PASSWORD)
        servers = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            options = ("--allow-host", NAME, "--password-file", str(folder / "password"))
            servers.append(Server(arguments.model.resolve(), folder / name, *options, OMP_NUM_THREADS="1"))
        nginx = start_nginx(folder, [int(server.url.rpartition(":")[2]) for server in servers])
        client = Client(f"https://127.0.0.1:{PORT}", host=f"{NAME}:{PORT}", authorization=basic("any", PASSWORD))
        stranger = Client(client.url, host=client.headers["host"])
        wait_until(lambda: answers(stranger))
        assert stranger.ask("/health")[0] == 200 and stranger.ask("/")[0] == 401
        assert stranger.send("POST", "/classify", bytes(50_000_000))[0] == 401
        stored = [path for path in (folder / "body").rglob("*") if path.is_file()]
        assert not stored, "nginx stored a body that was sent without the password"
        pictures = draw_pictures(folder)
        expected = [json.dumps(client.classify(picture)) for picture in pictures]
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", f"--host-resolver-rules=MAP {NAME} 127.0.0.1, MAP * ~NOTFOUND"],
            )
            credentials = {"username": "any", "password": PASSWORD}
            visits = [
                Visit(browser, f"https://{NAME}:{PORT}", ignore_https_errors=True, http_credentials=credentials)
                for _ in range(4)
            ]
            before = [visit.give(pictures[0]) for visit in visits]
            print(f"{len(visits)} open pages answered, each with its own cookie")

            def kill_at_a_third(n: int) -> None:
                if n == arguments.requests // 3:
                    servers[0].process.kill()
                    print(f"one replica killed after {n} answers")

            wrong = ask_many(client, pictures, expected, arguments.users, arguments.requests, kill_at_a_third)
            reloaded = 0
            for visit, first in zip(visits, before, strict=True):
                visit.context.set_default_timeout(30_000)  # a lost request has no answer at all
                visit.clear()
                try:
                    after = visit.give(pictures[0])
                except Exception:  # the first request after the kill may be lost: a user would reload the page
                    visit.page.reload()
                    reloaded += 1
                    after = visit.give(pictures[0])
                wrong += after != first
            print(f"the open pages give the same results as before; {reloaded} of them had to be reloaded")
            browser.close()
        print(f"files left: {servers[1].files()}, and of the killed one {servers[0].files()}; in nginx's folder: "
              f"{sorted(path.name for path in (folder / 'body').rglob('*') if path.is_file())}")  # fmt: skip
        nginx.terminate()
        nginx.wait()
        servers[1].end()
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
