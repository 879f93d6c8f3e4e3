"""`make load`: many users at once at the demo. Prints p50 and p95, and what its memory does. A benchmark, not a test.

Every answer is compared with that of an idle demo; one that differs ends it with status 1.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from serving import Server

from dermrw.drawing import draw_lesion


def megabytes(server: Server) -> int:
    """What its process holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1000


def main() -> None:
    """The users ask, each again as soon as it is answered."""
    parser = argparse.ArgumentParser("load", description=__doc__)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", type=Path, default=Path("app/model.onnx"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(arguments.model.resolve(), Path(folder), OMP_NUM_THREADS="")
        pictures = []
        for seed in range(8):
            rng = np.random.default_rng
            pictures.append(Path(folder) / f"{seed}.jpg")
            Image.fromarray(draw_lesion("mel", rng(seed), rng(seed + 100), 450, 600)).save(pictures[-1])
        expected = [json.dumps(server.classify(picture)) for picture in pictures]
        before = megabytes(server)
        alone = (time.monotonic(), server.classify(pictures[0]), time.monotonic())

        def ask(n: int) -> tuple[float, bool]:
            start = time.monotonic()
            answer = server.classify(pictures[n % 8])
            return time.monotonic() - start, json.dumps(answer) == expected[n % 8]

        memory, seconds, right = [before], [], []
        began = time.monotonic()
        with ThreadPoolExecutor(arguments.users) as pool:
            for n, (took, same) in enumerate(pool.map(ask, range(arguments.requests)), 1):
                seconds.append(took)
                right.append(same)
                if n % max(1, arguments.requests // 10) == 0:
                    memory.append(megabytes(server))
        whole = time.monotonic() - began
        p50, p95 = np.percentile(seconds, [50, 95])
        print(f"{arguments.requests} requests of {arguments.users} users: {len(right) - sum(right)} wrong answers")
        rate = arguments.requests / whole
        print(f"one alone {alone[2] - alone[0]:.2f} s; p50 {p50:.2f} s, p95 {p95:.2f} s; {rate:.1f} a second")
        print(f"memory in MB, at the start and after each tenth: {memory}")
        print(f"files that it left: {server.files()}")
        server.end()
        sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
