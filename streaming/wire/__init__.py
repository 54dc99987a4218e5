"""Messages between processes: frames and status, commands, states; child processes."""
