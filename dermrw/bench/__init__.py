"""What reweighting costs beside plain training, and everyone else's way of doing it: `make bench`."""
