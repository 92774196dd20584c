"""Single questions, measured once and written up."""
