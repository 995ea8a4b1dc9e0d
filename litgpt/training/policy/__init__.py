"""Reinforcement learning: advantages of answers over others to the same prompt, and losses of the policy."""
