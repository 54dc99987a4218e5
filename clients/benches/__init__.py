"""`volition bench`: what a tick and a recalibration cost."""
