"""From a trained run to its scores, thresholds and audit."""
