"""Adaptation to a new session, its cross-validation, and the server's training process."""
