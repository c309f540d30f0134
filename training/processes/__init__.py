"""Processes that belong together and end together."""
