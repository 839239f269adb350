"""Drawing images: one stage, the whole cascade, previews while training, PNG files that carry their origin."""
