"""Products in tiles by `wgmma` (sm_90a), schedules of the strategies `int8` and `dequantize`."""
