"""The REST API: the app, its routes and their bodies."""
