"""Data: the embedded digits dataset and what feeds images to a training run."""
