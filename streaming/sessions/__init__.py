"""Sessions on disk in torch_brain's HDF5 format, and the checks of their times and values."""
