"""The node agent: tells what each container does with its GPU, what GPUs there are, and each hook who else is on the card."""
