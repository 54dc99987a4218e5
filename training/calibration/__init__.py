"""A new day's units from labelled seconds: adaptation, cross-validation, the server's worker."""
