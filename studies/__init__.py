"""Programs that made one document each: measurements with this library, which are no part of it."""
