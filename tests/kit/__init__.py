"""What the tests are made with: the agent as a process, its surroundings, misbehaving peers, the documents."""
