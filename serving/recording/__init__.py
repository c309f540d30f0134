"""Rollouts on disk: recording, sealing and reading them."""
