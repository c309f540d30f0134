"""Filters that find unusable demonstrations (`syvla-clean`)."""
