"""Pieces that tabs are made from: markup, charts, colours."""
