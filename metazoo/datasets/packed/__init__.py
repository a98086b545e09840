"""Data sets larger than memory: the file format, its writer and its reader."""
