"""Calibrations: collect data, train, compare, promote."""
