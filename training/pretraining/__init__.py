"""Pretraining on many sessions: settings, trainer, optimizer, and runs on disk."""
