"""Weak labels from the messy text around images, and the generated catalogue."""
