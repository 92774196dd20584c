"""What was chosen, as tables and pictures."""
