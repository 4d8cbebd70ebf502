"""What to do: a recipe's knobs, and presets to start from."""
