"""Experiments and benchmarks whose results are in docs/, one command each."""
