"""The checks of `volition doctor`, each run in a process of its own."""
