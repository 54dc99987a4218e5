"""Bundles, the decoders on disk: manifest, graph, tables and weights, verified before use."""
