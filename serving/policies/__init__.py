"""Policies that a server can host."""
