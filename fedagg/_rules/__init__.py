"""Rules, which combine clients other than by a sum, for rounds in which some lie.

Those of one coordinate at a time are in `coordinatewise`, which takes order statistics
of few clients by a `network` of comparisons, of many by counting (`selection`). The
others look at vectors as a whole, most of them only through inner products
(`geometry`): `krum`, `subsets`, `geometric`, `filtering`. What changes the vectors
before a rule is in `mixing`.
"""
