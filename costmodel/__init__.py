"""What a schedule will cost."""
