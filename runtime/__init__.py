"""What runs after compiling. Works without MLIR installed."""
