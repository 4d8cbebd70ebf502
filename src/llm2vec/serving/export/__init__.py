"""Other forms of an encoder, each written, opened as others open it, and compared with its source."""
