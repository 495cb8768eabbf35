"""The test peers: an embedded registry and a toy service, each scriptable to misbehave."""
