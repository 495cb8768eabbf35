"""Stands in for array: socket passes file descriptors on with it, which nobody asks it to do."""
