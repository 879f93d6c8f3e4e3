"""Answers requests while the demo is starting: browsers show a page that reloads itself until the demo is ready."""

import select
import socket
import threading

PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The demo is starting</title>
<style>
body{font:18px/1.5 system-ui,sans-serif;margin:20vh auto;max-width:30rem;padding:0 1rem;color:#1b2430;background:#fff}
@media (prefers-color-scheme:dark){body{color:#e6ebf2;background:#11161d}}</style></head>
<body><main><p role="status">The demo is starting. This page reloads by itself.</p></main></body></html>
"""
HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html; charset=utf-8\r\nRetry-After: 1\r\nRefresh: 1\r\n"
    b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"
    b"Cache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(PAGE)
)
PATIENCE = 0.5  # seconds that a client has to send its request
POLL = 0.05  # seconds between two looks at whether the demo is ready


class LoadingPage:
    """Answers every request to a bound socket with status 503 and `PAGE`, in a thread of its own, until `stop`.

    The requests are read and ignored, so the answer says nothing about the demo. Connections that arrive after `stop`
    wait in the socket's queue for the server.
    """

    def __init__(self, bound: socket.socket) -> None:
        bound.listen(128)
        self._bound = bound
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="loading page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the answers; returns when no more connection is accepted here."""
        self._ready.set()
        self._thread.join()

    def _answer(self) -> None:
        while not self._ready.is_set():
            try:
                if not select.select([self._bound], [], [], POLL)[0]:
                    continue
                connection, _ = self._bound.accept()
            except (OSError, ValueError):  # the socket was closed: the start failed
                return
            with connection:
                connection.settimeout(PATIENCE)
                try:
                    connection.recv(65536)
                    connection.sendall(HEAD + PAGE)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(65536)  # otherwise unread bytes would reset the connection before the page arrives
                except OSError:
                    continue
