"""Data sets larger than memory: the format, its writer, and the data set that reads it."""
