"""A decoder on disk: a folder of manifest, graph, tables and weights, checked before use."""
