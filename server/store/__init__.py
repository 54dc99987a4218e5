"""What outlives the server: journal, registry of decoders, the orders in force."""
