"""Report files from probabilities and labels: report.json, report.html, figures. No torch."""
