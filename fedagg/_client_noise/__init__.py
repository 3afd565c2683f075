"""Noise that clients add themselves: each for itself, or shares of the noise on a sum
of which the server sees nothing else, as the Skellam mechanism does."""
