"""Taking an encoder elsewhere: serving it over HTTP."""
