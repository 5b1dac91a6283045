"""The recipes that ship with Rayward, as YAML files beside this one."""
