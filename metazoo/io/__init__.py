"""Bytes: files written whole, checksums, locks, downloads, archives."""
