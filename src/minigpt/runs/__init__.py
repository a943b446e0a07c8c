"""A run's folder and its trained model, without Lightning."""
