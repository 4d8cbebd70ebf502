"""Texts, rows and labelled sentences, read from files."""
