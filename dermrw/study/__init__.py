"""The study behind the README's figures: `python -m dermrw.study --help`."""
