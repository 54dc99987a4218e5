"""Sessions from a rig and back to it: record, convert, replay."""
