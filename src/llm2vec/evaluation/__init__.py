"""What an encoder is worth; each module is one kind of measurement."""
