"""What an encoder is worth: a module for each kind of measurement."""
