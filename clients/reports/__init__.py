"""Output of the verbs: progress bars, tables, the live view of the demo."""
