"""The policy over HTTP, as OpenAI's clients speak to one."""
