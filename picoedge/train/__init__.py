"""Training and fine-tuning of small models."""
