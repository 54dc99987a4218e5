"""A cursor task: its rules, its cursor, its window, its streams."""
