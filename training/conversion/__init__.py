"""Shared by all importers: units of length, axes, the user's options, assembly of a session."""
