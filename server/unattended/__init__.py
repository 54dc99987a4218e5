"""Unattended recalibration: starts calibrations by alarm or by the clock; off unless asked for."""
