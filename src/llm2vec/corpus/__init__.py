"""Texts, rows and tagged sentences, read from files."""
