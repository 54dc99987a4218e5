"""The daemon of a server: starts or adopts it, gives it orders, and restarts it."""
