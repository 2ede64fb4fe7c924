"""The room of the networks: binarized convolutions, candidate operations, supernets, genotypes, discrete networks."""
