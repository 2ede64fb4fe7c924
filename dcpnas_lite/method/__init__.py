"""The room of the method: objectives, tangent propagation, decoupled optimization, reading a cell, Algorithm 10."""
