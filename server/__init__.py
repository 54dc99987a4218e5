"""The control plane. Empty until the recalibration service lands; the daemon runs without it."""
