"""Messages out and commands in: ZeroMQ frames, control, states, JSON lines."""
