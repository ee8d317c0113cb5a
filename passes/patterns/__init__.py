"""What models spell out in many operations, recognized: norms, softmax, caches, scans."""
