"""The two model families in torch: POYO, the streaming model, their attention and presets."""
