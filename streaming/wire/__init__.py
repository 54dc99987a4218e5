"""Messages between processes: frames and status, commands, states, JSON lines."""
