"""What a conversion gained, measured; each module is one kind of measurement."""
