"""Rounds between machines: messages as bytes, a server that adds them as they come and
survives its end, and rounds that wait for nobody."""
