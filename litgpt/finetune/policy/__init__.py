"""What reinforcement learning adds to finetuning: rollouts, rewards, a reference."""
