"""Does the built-in policy learn, and is what it learns worth anything? Four bars, each with intervals over seeds."""
