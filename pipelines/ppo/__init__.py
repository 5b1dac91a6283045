"""PPO with two reward models."""
