"""Training a run: the loop, its checkpoints, devices and processes."""
