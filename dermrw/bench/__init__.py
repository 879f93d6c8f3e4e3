"""Benchmark `make bench`: the cost of reweighting compared with plain training and with other implementations."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler's warnings on absent GPUs; read at import
