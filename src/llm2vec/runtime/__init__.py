"""What everything runs on: files, progress, devices and the matrix products of a CPU. Knows nothing of models."""
