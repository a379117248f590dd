"""Layouts: the rules that say which artefacts a domain has, what each is called, and where it lies."""
