"""Many videos of a list of prompts, made by workers that do not talk to each other."""
