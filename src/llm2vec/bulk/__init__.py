"""Encoding of files of any size into a folder of shards, in constant memory, killed and resumed at will."""
