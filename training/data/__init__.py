"""Training data: simulated sessions, windows of tokens, the tuning of units."""
