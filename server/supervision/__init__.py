"""Processes that the server keeps running: the daemon, and the workers of a calibration."""
