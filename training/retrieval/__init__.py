"""Retrieval of similar expert samples: image encoders, stored vectors and indices (paper, section 3.3)."""
