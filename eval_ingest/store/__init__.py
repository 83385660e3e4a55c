"""The destination side: every byte that is written is written here."""
