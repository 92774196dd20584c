"""Files of quantized models: what they hold, how one is made from another, and its card."""
