"""What the verbs run and print: progress bars, tables, the view of the demo."""
