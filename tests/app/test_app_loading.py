"""The page that browsers see while the demo is starting."""

import socket
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

from app.__main__ import bind_socket
from app.loading import PAGE, LoadingPage


def ask(port: int, data: bytes | None = None) -> tuple[int, str, str]:
    """Returns status, the header Refresh, and the body."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        answer = opener.open(f"http://127.0.0.1:{port}/", data, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers.get("Refresh", ""), answer.read().decode()


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ready")

    def log_message(self, *_: object) -> None:
        pass


def test_it_reloads_until_the_server_takes_over() -> None:
    bound = bind_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    loading = LoadingPage(bound)
    for data in (None, b"x" * 200_000):
        status, refresh, body = ask(port, data)
        assert (status, refresh) == (503, "1") and "is starting" in body
    with socket.create_connection(("127.0.0.1", port)):  # a client that sends nothing holds nobody up for long
        assert ask(port)[0] == 503
    loading.stop()

    waiting: list[tuple[int, str, str]] = []
    client = threading.Thread(target=lambda: waiting.append(ask(port)))
    client.start()  # between the two: it waits for the server
    server = HTTPServer(("127.0.0.1", 0), Ready, bind_and_activate=False)
    server.socket.close()
    server.socket = bound
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    client.join(60)
    assert waiting == [(200, "", "ready")] and ask(port)[0] == 200
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_failed_start_ends_it() -> None:
    bound = bind_socket("127.0.0.1", 0)
    loading = LoadingPage(bound)
    bound.close()
    loading.stop()
    assert not loading._thread.is_alive()


def test_the_page_loads_nothing_and_says_nothing_about_the_demo() -> None:
    assert not any(word in PAGE.decode() for word in ("script", "http://", "https://", "dermrw"))
