"""Taking an encoder elsewhere: exporting it to other runtimes, publishing it, serving it over HTTP."""
