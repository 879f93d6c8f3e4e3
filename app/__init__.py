"""The web demo: `python -m app [MODEL]`. It needs no torch."""

import os

# Before Pillow is imported, which reads it once: pictures take memory by blocks of this size. Blocks of up to 32 MB the
# C library keeps for the thread that took them, gigabytes after a few large pictures; larger ones it returns.
os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
