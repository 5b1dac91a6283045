"""Who may ask? The HTTP surface: reward scoring, the policy, and jobs."""
