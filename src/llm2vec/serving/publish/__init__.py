"""An encoder on a model hub: its files, its card, and the upload."""
