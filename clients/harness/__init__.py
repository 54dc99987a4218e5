"""Replay, daemon and server as child processes, for benchmarks, the rig and tests."""
