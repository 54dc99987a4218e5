"""Runtimes: an opened bundle of any family, which takes spikes and returns velocities."""
