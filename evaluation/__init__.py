"""Closed-loop and benchmark evaluation of SyVLA."""
