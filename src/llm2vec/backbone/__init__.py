"""Any decoder, made bidirectional and proven."""
