"""The web demo: `python -m app [MODEL]`. It does not need torch."""

import os

from .environment import prepare

prepare(os.environ)  # before any library is imported

# Pillow reads this once, when it is imported, and allocates images in blocks of this size. The C library keeps freed
# blocks of up to 32 MB for the thread that allocated them: gigabytes after a few large images. It returns larger ones.
os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
