"""The generated catalogue: photos of made-up products with messy text, and the truth apart."""
