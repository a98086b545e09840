"""Encoders of the Hugging Face Hub, through transformers, which is imported when a network is built."""
