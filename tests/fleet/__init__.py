"""Many sidecars at once: a simulation of thousands, a real run of a hundred, and the picture."""
