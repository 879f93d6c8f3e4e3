"""The study behind the figures of docs/results.md: `python -m dermrw.study --help`."""
