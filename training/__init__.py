"""Everything that needs torch, and what feeds it: importers, simulation, pretraining, export."""
