"""What calibrating, loading and profiling cost in seconds and memory."""
