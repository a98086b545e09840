"""Atomic file writes, checksums, locks, downloads and archives."""
