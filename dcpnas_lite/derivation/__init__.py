"""The derivation of Eqs. 4.42–4.50 on tensors: two toy problems, three responses ∂w/∂α, and every tensor in between."""
