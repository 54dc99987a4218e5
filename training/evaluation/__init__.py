"""Offline evaluation of bundles on recorded sessions, and the HTML report."""
