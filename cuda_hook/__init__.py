"""The CUDA hook: its node agent, its accuracy suite and its check on a real GPU. The hook itself is the C library in src/."""
