"""Recording a rig's streams, conversion of recordings to sessions, and replay over LSL."""
