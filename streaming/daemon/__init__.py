"""The process that decodes: tick loop, commands, swap, health, watchdog."""
