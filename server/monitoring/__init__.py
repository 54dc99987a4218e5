"""Monitoring: metrics for Prometheus, and health and metadata by the Open Inference Protocol."""
