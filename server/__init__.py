"""The control plane: REST API, supervisor, calibrations. The daemon runs without it."""
