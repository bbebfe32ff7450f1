"""What a controller spends, and whether it keeps its bars."""

import os

# One core is what the bars speak of; the library reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
