"""A trained model becomes a bundle: graph, tables, weights."""
