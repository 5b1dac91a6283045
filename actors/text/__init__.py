"""Conversations and plain text as token ids."""
