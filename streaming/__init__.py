"""The decode daemon (LSL in, ZeroMQ out), recordings, and sessions on disk."""
