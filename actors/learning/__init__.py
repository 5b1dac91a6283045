"""Who learns: the PPO learner under DeepSpeed, the reference, their losses and weight sync."""
