"""Labelled images on disk: tables, class folders, and the image files they name. No torch."""
