"""Teams of agents that learn from each other."""
