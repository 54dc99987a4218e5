"""Calibrations: collect, learn, judge, promote."""
