"""Ways to sum a function over clients, under `vmap`, in chunks, across devices; and
the interpreter that turns what stages do to leaves into dot products."""
