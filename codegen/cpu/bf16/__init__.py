"""Products of bf16: exact ones, added up in f32 (docs/numerics.md, "Products in bf16")."""
