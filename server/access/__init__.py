"""Who may call the server: Host, Origin, token and cookie, and limits on connections."""
