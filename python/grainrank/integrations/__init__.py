"""grainrank inside the libraries that people train with: a module for each, imported when used.

`integrations.sentence_transformers`, `integrations.transformers` and `integrations.open_clip`;
docs/integrations.md shows them.
"""
