"""The spikes that a decoder remembers: ring, token rows, closed chunks."""
