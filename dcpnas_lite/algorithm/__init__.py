"""The room of the method: objectives, tangent propagation, backtracking, and the search loop (Algorithm 10)."""
