"""A page on which a person instructs a policy on the simulated tabletop and sees what happens inside it."""
