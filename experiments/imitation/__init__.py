"""Driver of imitation: learning to act from demonstrations."""
