"""What runs in the saver process."""
