"""From a file to pixels: decoding, safety limits, and the one preprocessing. No torch."""
