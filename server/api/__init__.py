"""The REST interface: app, routes, access, connections."""
