"""Many sidecars at once: a simulation of thousands, and the picture."""
