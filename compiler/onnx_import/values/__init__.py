"""What the importer knows of a tensor: type, sizes, content; where constants are stored."""
