"""Persistent state of the server: journal, registry of decoders, wanted state of the daemon."""
