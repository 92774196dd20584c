"""Measurements: how near to 16 bit, how fast, beside which peers. Every number in the docs comes from here."""
