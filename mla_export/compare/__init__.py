"""Hold bundles on backends against one reference, over a whole decode: `agreement.compare`."""
