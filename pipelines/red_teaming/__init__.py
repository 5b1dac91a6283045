"""Red teaming: prompts that get through."""
