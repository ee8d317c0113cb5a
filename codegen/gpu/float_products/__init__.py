"""Products in f32 on CUDA cores: strategy `float`, and products of two activations."""
