"""Ratings by people: studies of image pairs, the page that raters see, its server, and what their answers say."""
