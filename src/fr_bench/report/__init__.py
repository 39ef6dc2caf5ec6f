"""What runs amount to: groups over seeds, measures, tables, published numbers."""
