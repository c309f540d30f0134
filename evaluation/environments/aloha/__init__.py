"""ALOHA in simulation: environment and scripted experts."""
