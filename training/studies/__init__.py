"""Experiments and benchmarks that docs/ report, one command each."""
