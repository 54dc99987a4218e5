"""The process that decodes: ticks, commands, status, decoder swap, watchdog."""
