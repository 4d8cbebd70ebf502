"""Encoding files of any size into a folder of shards, in constant memory, with resumption."""
