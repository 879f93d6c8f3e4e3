"""Rules on top of probabilities: prevalence, prediction sets, triage, refusal. No torch."""

# relative margin of every fitted threshold: the exported graph rounds differently from the code that fitted it
ROUNDING = 1e-4
