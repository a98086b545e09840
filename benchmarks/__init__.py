"""What metazoo's figures are measured with."""
