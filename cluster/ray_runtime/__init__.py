"""Ray: joining or starting it, placing roles, naming nodes that are lost."""
