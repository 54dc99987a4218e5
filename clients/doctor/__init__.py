"""`volition doctor`: examines whether this machine can run the rig, and prints what to do."""
