"""What the tests are made with.

The agent as a process, its surroundings, misbehaving peers, the documents.
"""
