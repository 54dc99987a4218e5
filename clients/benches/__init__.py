"""`volition bench`: the cost of a tick and of a recalibration."""
