"""One module a notebook: the reference solution and the check of each of its exercises."""
