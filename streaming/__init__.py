"""The decode daemon: LSL in, tick loop, ZeroMQ out; sessions on disk and their replay."""
