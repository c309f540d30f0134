"""Similar-Sample Guided RL: from sealed rollouts to a new policy (paper, section 3.3)."""
