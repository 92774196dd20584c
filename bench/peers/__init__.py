"""Other formats and other libraries' layers, to compare with."""
