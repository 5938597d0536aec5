"""What pictures are scored by, each a `Metric`: likeness, obedience, copying, and a judge that is asked."""
