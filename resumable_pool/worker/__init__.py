"""What runs in a worker process, or wherever an executor processes files."""
