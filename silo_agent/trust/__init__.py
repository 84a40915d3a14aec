"""How the agent comes to an identity, and how it connects with it."""
