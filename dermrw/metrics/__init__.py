"""Metrics of predictions as pure functions of NumPy arrays. No torch."""
