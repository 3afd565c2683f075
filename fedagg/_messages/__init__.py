"""What a client sends: arrays, and nodes that stand for arrays on the wire, such as
integers modulo a power of two, packed codes, or values clipped for privacy."""
