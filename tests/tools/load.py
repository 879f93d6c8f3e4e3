"""`make load`: many simultaneous users of the demo. Prints response times (p50, p95) and memory.

It is a benchmark, not a test. Every answer is compared with that of an idle demo. The exit status is 1 if any differs.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tools.serving import Client, Server

from dermrw.datasets.sample_drawing import draw_lesion


def megabytes(server: Server) -> int:
    """Returns the resident memory of the server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1000


def draw_pictures(folder: Path) -> list[Path]:
    """Writes eight drawn lesions of the size of HAM10000's images; returns their paths."""
    rng, paths = np.random.default_rng, [folder / f"{seed}.jpg" for seed in range(8)]
    for seed, path in enumerate(paths):
        Image.fromarray(draw_lesion("mel", rng(seed), rng(seed + 100), 450, 600)).save(path)
    return paths


def ask_many(
    client: Client, pictures: list[Path], expected: list[str], users: int, requests: int, report: Callable[[int], None]
) -> int:
    """Sends requests from several users, each without a pause; prints the times, returns the number of wrong answers.

    Args:
        client: of the demo.
        pictures: sent in turn.
        expected: the correct answers, as JSON.
        users: at the same time.
        requests: in total.
        report: called after each answer with the number of answers so far.
    """

    def ask(n: int) -> tuple[float, bool]:
        start = time.monotonic()
        try:
            answer = json.dumps(client.classify(pictures[n % len(pictures)]))
        except (AssertionError, OSError) as error:  # another status, or no answer
            answer = str(error)
        return time.monotonic() - start, answer == expected[n % len(pictures)]

    seconds, wrong, began = [], 0, time.monotonic()
    with ThreadPoolExecutor(users) as pool:
        for n, (took, right) in enumerate(pool.map(ask, range(requests)), 1):
            seconds.append(took)
            wrong += not right
            report(n)
    total = time.monotonic() - began
    p50, p95 = np.percentile(seconds, [50, 95])
    print(f"{requests} requests of {users} users: {wrong} wrong answers")
    print(f"p50 {p50:.2f} s, p95 {p95:.2f} s, longest {max(seconds):.2f} s; {requests / total:.1f} per second")
    return wrong


def main() -> None:
    """Runs the benchmark; prints also the time of one request to an idle demo, memory and files."""
    parser = argparse.ArgumentParser("load", description=__doc__)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", type=Path, default=Path("app/model.onnx"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(arguments.model.resolve(), Path(folder), OMP_NUM_THREADS="")
        pictures = draw_pictures(Path(folder))
        expected = [json.dumps(server.classify(picture)) for picture in pictures]
        memory = [megabytes(server)]
        start = time.monotonic()
        server.classify(pictures[0])
        print(f"single request {time.monotonic() - start:.2f} s")
        tenth = max(1, arguments.requests // 10)
        wrong = ask_many(
            server, pictures, expected, arguments.users, arguments.requests,
            lambda n: memory.append(megabytes(server)) if n % tenth == 0 else None,
        )  # fmt: skip
        print(f"memory in MB, at the start and after each tenth of the requests: {memory}")
        print(f"files left: {server.files()}")
        server.end()
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
