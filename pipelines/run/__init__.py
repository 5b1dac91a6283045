"""What a running recipe hands to its stages: context, inputs, samplers, capacity, data."""
