"""The control plane: REST, the daemon's keeper, calibrations. The daemon runs without it."""
