"""Inference without torch: bundles on disk, token rows in a ring, ONNX Runtime."""
