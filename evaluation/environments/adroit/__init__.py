"""Adroit: a hand with 24 joints, on an arm."""
