"""The two model families in torch, POYO and the streaming model: attention, encoder, presets."""
