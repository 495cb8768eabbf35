"""A soak: real agents, hours of faults from both sides, and what must hold all along."""
