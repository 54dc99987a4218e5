"""A simulated participant: sees the screen, intends a movement, fires spikes."""
