"""The web demo: `python -m app [MODEL]`. It needs no torch."""
