"""Imitation learning: the trainer, the data and the metrics of pretraining and fine-tuning."""
