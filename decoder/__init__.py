"""Inference without torch: bundles on disk, spike tokens, the ring, ONNX Runtime."""
