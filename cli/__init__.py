"""One file a command: `add_to` puts its options into the parser, `run` calls one room and prints what comes back."""
