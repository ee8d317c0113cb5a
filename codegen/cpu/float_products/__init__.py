"""Products in f32: of floats, of codes made floats, convolutions, quantized caches."""
