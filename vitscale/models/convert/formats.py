"""The formats of `vitscale convert` by name; apart from the code behind them, for the command line to list."""

IMPORT_FORMATS = ("big_vision", "timm", "hf", "safetensors")
EXPORT_FORMATS = (*IMPORT_FORMATS, "stablehlo")
