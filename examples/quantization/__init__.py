"""Every quantization method on one model, side by side."""
