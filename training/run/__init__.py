"""What every training run is made of: its arguments, recipe, trained parts, batches and checkpoints."""
