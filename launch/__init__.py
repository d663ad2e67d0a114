"""One module per place where `vitscale train` can run."""
