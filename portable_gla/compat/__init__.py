"""Other libraries' calls, served by :func:`portable_gla.attention`: move a model by changing an import."""
