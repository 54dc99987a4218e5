"""How well a bundle decodes a recorded session, as numbers and as a page."""
