"""Export trained models: bundles with graph, tables and weights, and torch_brain's checkpoints."""
