"""LSL input streams: search, connection, clock offset, admission of spikes."""
