"""Who samples: vLLM engines, their new weights, and a policy that is asked."""
