"""What will be done to which layer, and why: data, the rules that make it, and the report of it."""
