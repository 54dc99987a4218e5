"""A bundle in memory, of any family: append spikes, decode at a time, reset."""
