"""How exactly the hook holds a container to its share of GPU time, measured on the simulated serial GPU."""
