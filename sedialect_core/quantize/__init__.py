"""Carries out a plan: checks, encodes the weights, swaps the layers."""
