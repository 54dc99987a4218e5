"""The REST API: app, routes, access, connections."""
