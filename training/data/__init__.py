"""What models learn from: simulated sessions, windows of tokens, tuning of units."""
