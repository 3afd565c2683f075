"""Rules against attacks on real data, through fedagg and through ByzFL."""
