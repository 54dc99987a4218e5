"""The operator's screen: pages, login, and a WebSocket feed of what the daemon does."""
