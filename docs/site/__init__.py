"""What Sphinx is told beside its configuration: pictures, tables and docstrings."""
