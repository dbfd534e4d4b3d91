"""Finished trials in MLflow or Weights & Biases too, where a study's owner already looks."""
