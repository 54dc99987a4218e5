"""The `volition` command, one file per group of verbs."""
