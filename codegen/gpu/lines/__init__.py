"""Along an axis: running sums, selective scans, the first k, the place of the largest."""
