"""Other forms of an encoder, each opened as others open it, and compared with its source."""
