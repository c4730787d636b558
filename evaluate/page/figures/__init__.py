"""Figures of the pages, as inline SVG."""
