"""A package, so that no library that brings a package of this name with it stands in its way."""
