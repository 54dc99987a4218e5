"""The processes of the server: the daemon, and the child processes of a calibration."""
