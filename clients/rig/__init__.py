"""The closed loop without a rig: a task, its score, and who steers it."""
