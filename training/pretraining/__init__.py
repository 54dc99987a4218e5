"""Pretraining on many sessions: trainer, optimizer, runs and checkpoints on disk."""
