"""Taking an encoder elsewhere: export to other runtimes, publishing, and serving over HTTP."""
