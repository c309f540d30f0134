"""Templates of model cards, filled when a checkpoint is saved."""
