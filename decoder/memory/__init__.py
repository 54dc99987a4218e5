"""The spikes and states that a decoder keeps: ring, token rows, closed chunks."""
