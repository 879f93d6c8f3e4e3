"""What reweighting costs beside plain training, and everyone else's way of doing it: `make bench`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # PyTorch's profiler reports on absent GPUs; it reads this on import
