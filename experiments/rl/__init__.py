"""Driver of meta-reinforcement learning."""
