"""That no way to compute the step changes the training."""
