"""Replay, daemon and server as child processes, for whoever measures them."""
