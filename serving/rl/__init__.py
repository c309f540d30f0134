"""The Scheduler of reinforcement learning: episodes, rewards and published policies (paper, appendix A)."""
