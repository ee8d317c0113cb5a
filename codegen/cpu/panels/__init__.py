"""What integer strategies share: weights in panels, products over these; `bitplane`."""
