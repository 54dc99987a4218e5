"""Sessions in memory and on disk (torch_brain's HDF5 format), and checks of their data."""
