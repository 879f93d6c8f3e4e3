"""Rules on top of probabilities: prevalence, prediction sets, triage, refusal. No torch."""
