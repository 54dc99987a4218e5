"""Classical decoders to compare with: ridge, Kalman, GRU."""
