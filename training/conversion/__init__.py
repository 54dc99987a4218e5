"""What every importer needs: units of length, the user's choices, assembly of a session."""
