"""The unconstrained feature model: the problem, its evaluation, its quotient, meshes of devices."""
