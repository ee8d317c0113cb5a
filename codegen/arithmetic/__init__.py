"""Arithmetic of floats on every target: functions as polynomials, 16-bit floats in f32."""
