"""A simulated participant: sees the screen, wants a movement, fires."""
