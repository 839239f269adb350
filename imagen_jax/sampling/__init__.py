"""Drawing images: one stage, the whole cascade, grids while training, PNG files that carry their origin."""
